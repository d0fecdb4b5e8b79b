"""Resolve workspaces, and answer with the fallback whenever there is no usable answer.

A resolution never raises: without a usable answer it is `platform_managed`, and `error` says why.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from billing_grpc import validation
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as pb
from billing_grpc._gen.molecule.billing.v1 import billing_mode_service_pb2 as service_pb
from billing_grpc.client import fallback, verified
from billing_grpc.client.calls import NO_WORKSPACE, Calls, WorkspaceId
from billing_grpc.client.deciding import batches, decide
from billing_grpc.client.fallback_log import record_fallback
from billing_grpc.errors import AnswerInvalid, BillingError, InvalidArgument
from billing_grpc.model import Resolution, ResolutionError

_RESOLVE_MANY: Final = "BatchResolveBillingModes"


class Resolutions:
    """The resolutions of one client.

    Args:
        calls: makes the calls.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def resolve(
        self,
        workspace_id: WorkspaceId = NO_WORKSPACE,
        *,
        org_default: str | None = None,
        timeout: float | None = None,
    ) -> Resolution:
        """Return who pays for a workspace, and why. Never raises.

        Args:
            workspace_id: the workspace; empty before it exists.
            org_default: assume this org default instead of the published one.
            timeout: seconds, instead of the client's.
        """
        asked = str(workspace_id)

        async def ask() -> Resolution:
            request = service_pb.ResolveBillingModeRequest(workspace_id=asked, org_default=org_default)
            answer = await self._calls.call(
                lambda stub: stub.ResolveBillingMode, "ResolveBillingMode", request, timeout
            )
            return verified.resolution(answer.resolution, asked, what_if=org_default)

        return await decide("ResolveBillingMode", ask, lambda error: fallback.resolution(asked, error))

    async def resolve_many(
        self,
        workspace_ids: Iterable[WorkspaceId],
        *,
        org_default: str | None = None,
        timeout: float | None = None,
    ) -> list[Resolution]:
        """Return who pays for each of these workspaces, in their order, duplicates included. Never raises.

        A call asks for at most a thousand ids and has its own timeout. A malformed id gets the fallback; the other ids are
        not affected.

        Args:
            workspace_ids: the workspaces.
            org_default: assume this org default instead of the published one.
            timeout: seconds for each call, instead of the client's.
        """
        ids = [workspace_ids] if isinstance(workspace_ids, str) else [str(each) for each in workspace_ids]
        wrong: dict[int, InvalidArgument] = {}
        for position, each in enumerate(ids):
            try:
                validation.workspace_id(each)
            except InvalidArgument as error:
                wrong[position] = error
        found = _fallbacks(ids, wrong)
        askable = [position for position in range(len(ids)) if position not in wrong]
        for batch in batches(askable, validation.MAX_BATCH):
            answered = await self._resolve_batch([ids[position] for position in batch], org_default, timeout)
            found.update(zip(batch, answered, strict=True))
        return [found[position] for position in range(len(ids))]

    async def _resolve_batch(
        self, batch: Sequence[str], org_default: str | None, timeout: float | None
    ) -> list[Resolution]:
        async def ask() -> list[Resolution]:
            request = service_pb.BatchResolveBillingModesRequest(workspace_ids=batch, org_default=org_default)
            answer = await self._calls.call(lambda stub: stub.BatchResolveBillingModes, _RESOLVE_MANY, request, timeout)
            about = [each.workspace_id for each in answer.resolutions]
            if about != [each.lower() for each in batch]:
                raise AnswerInvalid("the server's answer cannot be used: it is not about the workspaces of the request")
            return _verified_each(answer.resolutions, batch, org_default)

        def fall_back(error: ResolutionError) -> list[Resolution]:
            return [fallback.resolution(each, error) for each in batch]

        return await decide(_RESOLVE_MANY, ask, fall_back, decisions=len(batch))


def _verified_each(
    messages: Iterable[pb.BillingModeResolution], asked: Sequence[str], what_if: str | None
) -> list[Resolution]:
    """Return each usable resolution, and the fallback for each that is not usable."""
    found: dict[int, Resolution] = {}
    wrong: dict[int, AnswerInvalid] = {}
    for position, message in enumerate(messages):
        try:
            found[position] = verified.resolution(message, asked[position], what_if=what_if)
        except AnswerInvalid as error:
            wrong[position] = error
    found |= _fallbacks(asked, wrong)
    return [found[position] for position in range(len(asked))]


def _fallbacks(ids: Sequence[str], wrong: Mapping[int, BillingError]) -> dict[int, Resolution]:
    """Return the fallback for each of these positions; log one line for all of them."""
    if not wrong:
        return {}
    error = record_fallback(_RESOLVE_MANY, next(iter(wrong.values())), len(wrong))
    return {position: fallback.resolution(ids[position], error) for position in wrong}
