"""All methods of a client, over the calls that it makes."""

from collections.abc import Iterable

from billing_grpc.catalogue import NameSet
from billing_grpc.client.administration import Administration
from billing_grpc.client.calls import Calls
from billing_grpc.client.key_decisions import KeyDecisions, key_names
from billing_grpc.client.resolutions import Resolutions
from billing_grpc.client.workspace_lists import WorkspaceLists
from billing_grpc.model import Catalogue
from billing_grpc.secret_keys import KeyList, normalise


class ClientMethods(Resolutions, KeyDecisions, Administration, WorkspaceLists):
    """The methods of one client.

    Args:
        calls: makes the calls.
        blocked_keys: the set of the catalogue that the server blocks.
        extra_blocked_keys: names that the server's configuration adds to that set.

    Raises:
        ValueError: an unknown set, or a malformed key.
    """

    def __init__(self, calls: Calls, blocked_keys: str, extra_blocked_keys: Iterable[str]) -> None:
        extra = {key: normalise(key) for key in key_names(extra_blocked_keys)}
        if wrong := [key for key, name in extra.items() if name is None]:
            raise ValueError(f"extra_blocked_keys: these are not names of keys: {wrong}")
        if blocked_keys not in list(NameSet):
            raise ValueError(f"blocked_keys: {blocked_keys} is no set of names; use {', '.join(NameSet)}")
        names = [name for name in extra.values() if name is not None]
        Administration.__init__(self, calls)
        WorkspaceLists.__init__(self, calls)
        Resolutions.__init__(self, calls)
        KeyDecisions.__init__(self, calls, KeyList(names, name_set=NameSet(blocked_keys)))

    @property
    def catalogue(self) -> Catalogue:
        """Return the list of vendor names that this client blocks by itself."""
        return self._keys.catalogue

    async def close(self) -> None:
        """End the running calls and the connection; later decisions get the fallback."""
        await self._calls.close()
