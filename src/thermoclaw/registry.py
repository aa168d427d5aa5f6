"""Which attachments measure which optimizer, for as long as both live."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from thermoclaw.attachment import Attachment

_attached: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Attachment]] = weakref.WeakKeyDictionary()


def register(attachment: Attachment, optimizer: Any) -> None:
    """Note that an attachment was made."""
    _attached.setdefault(optimizer, weakref.WeakSet()).add(attachment)


def attached_to(optimizer: Any) -> list[Attachment]:
    """The live attachments of an optimizer, the first made first."""
    found = [a for a in _attached.get(optimizer, ()) if not a.closed]
    return sorted(found, key=lambda a: a.number)


def others(mine: Any) -> list[Attachment]:
    """One live attachment of every other optimizer that is observed."""
    if len(_attached) < 2:
        return []
    found = (attached_to(optimizer) for optimizer in list(_attached) if optimizer is not mine)
    return [attachments[0] for attachments in found if attachments]


def is_anothers(p: Tensor, mine: Any) -> bool:
    """Whether a parameter belongs to another optimizer that is observed: of a critic, say, that steps more rarely."""
    rest = [optimizer for optimizer in list(_attached) if optimizer is not mine]
    return any(p is held for optimizer in rest for group in optimizer.param_groups for held in group["params"])
