"""An address book that forgets when the test ends."""

from __future__ import annotations


class MemoryBook:
    """Keeps addresses in order, and what was asked of it."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    def load(self) -> list[str]:
        return list(self.addresses)

    def remember(self, address: str) -> None:
        if address not in self.addresses:
            self.addresses.append(address)

    def forget(self, address: str) -> None:
        if address in self.addresses:
            self.addresses.remove(address)
