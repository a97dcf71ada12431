"""The ends of a page: what a list begins behind and ends in front of has to be there.

Without this, a cursor that is misspelt or was deleted meanwhile would look like the end of the list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from stateroom.errors import InvalidRequest


async def check_cursors(find: Callable[[str], Awaitable[object]], what: str, *, after: str, before: str) -> None:
    """Raises InvalidRequest when `find` knows nothing by an id that is given; `what` says what the list has."""
    for param, identifier in (("after", after), ("before", before)):
        if identifier and await find(identifier) is None:
            message = f"`{param}`: no {what} with id '{identifier[:256]}'."
            raise InvalidRequest(message, code="invalid_value", param=param)
