"""One upstream name that we rely on; `compat` has them all."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hook:
    """An upstream name, in its defining module, and the parameters that we pass or override."""

    module: str
    name: str  # dotted for a member of a class
    parameters: tuple[str, ...] = ()
