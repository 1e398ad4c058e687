"""The event bus: from finished batches to hooks."""

from asyncloop.bus.bus import EventBus
from asyncloop.bus.listener import Gap, Listener
from asyncloop.bus.subscription import Marker, Subscription
from asyncloop.bus.views import device_scalars, leaf, named_values

__all__ = ["EventBus", "Gap", "Listener", "Marker", "Subscription", "device_scalars", "leaf", "named_values"]
