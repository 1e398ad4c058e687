"""Streams: descriptions, operators, producers, and the buffer between them and the model thread."""

from asyncloop.stream.buffer import BufferStatistics, EndOfStream, Interrupted, StreamBuffer
from asyncloop.stream.description import Stream
from asyncloop.stream.feed import Feed, StagedFeed, open_feed
from asyncloop.stream.lookup import check_streams, dataset_streams, open_node
from asyncloop.stream.operators import Item, Node, shared_out
from asyncloop.stream.order import Pass, Share

__all__ = [
    "BufferStatistics",
    "EndOfStream",
    "Feed",
    "Interrupted",
    "Item",
    "Node",
    "Pass",
    "Share",
    "StagedFeed",
    "Stream",
    "StreamBuffer",
    "check_streams",
    "dataset_streams",
    "open_feed",
    "open_node",
    "shared_out",
]
