"""What asyncloop costs and what it hides, beside the systems people use today. `python -m bench --list` shows it all."""
