"""The event bus: from finished batches to hooks."""

from asyncloop.bus.bus import EventBus, Finished, Place
from asyncloop.bus.listener import Gap, Listener
from asyncloop.bus.subscription import Marker, Subscription
from asyncloop.bus.views import leaf, to_host

__all__ = ["EventBus", "Finished", "Gap", "Listener", "Marker", "Place", "Subscription", "leaf", "to_host"]
