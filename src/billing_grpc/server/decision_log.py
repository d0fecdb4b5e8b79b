"""Logs and counts decisions."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import structlog

from billing_grpc.model import ChangeNote, OverrideChange, Principal, Resolution, ResolutionError, SecretKeyVerdict
from billing_grpc.resolver import is_corrupt
from billing_grpc.secret_keys import normalise
from billing_grpc.server.telemetry.metrics import Metrics

MAX_SUSPECTS: Final = 1000
"""The names are a caller's, so their number is limited."""

log = structlog.stdlib.get_logger(__name__)


class DecisionLog:
    """Logs and counts the answers of the service.

    Args:
        metrics: where answers are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._suspects: set[str] = set()

    def resolved(self, resolutions: Collection[tuple[Resolution, int]], *, what_if: bool = False) -> None:
        """Count the resolutions of one call; log one WARNING for the degraded ones and one for corrupt overrides.

        Args:
            resolutions: the different resolutions that one call answered, each with the number of its workspaces.
            what_if: whether the caller supplied the org default. Such an answer is logged, but not counted.
        """
        degraded: list[tuple[Resolution, ResolutionError, int]] = []
        corrupt: list[tuple[Resolution, int]] = []
        for each, workspaces in resolutions:
            if not what_if:
                self._metrics.count_resolution(each, workspaces)
            if each.error is not None:
                degraded.append((each, each.error, workspaces))
            elif is_corrupt(each):
                corrupt.append((each, workspaces))
        if degraded:
            first, error, _ = degraded[0]
            log.warning(
                "billing mode could not be read, defaulting to platform_managed for safety",
                workspace=first.workspace_id,
                reason=error.reason,
                org_default=first.org_default.value,
                affected=sum(workspaces for _, _, workspaces in degraded),
            )
        if corrupt:
            # The override's text is left out: it may be anything. An administrator reads it with `GetWorkspaceBillingMode`.
            log.warning(
                "stored override is not a recognised mode, closed to platform_managed",
                workspace=corrupt[0][0].workspace_id,
                org_default=corrupt[0][0].org_default.value,
                affected=sum(workspaces for _, workspaces in corrupt),
            )

    def planned(self, resolution: Resolution) -> None:
        """Log one INFO line for a plan, in the words for which operators search their logs."""
        line = (
            f"workspace_provision: billing mode workspace={resolution.workspace_id} resolved={resolution.mode}"
            f" source={resolution.source} org_default={resolution.org_default}"
        )
        log.info(line)

    def suspected(self, names: Iterable[str]) -> None:
        """Count and log each name once that looks like a vendor's and is in no set."""
        for each in names:
            name = normalise(each)
            if name is None or name in self._suspects or len(self._suspects) >= MAX_SUSPECTS:
                continue
            self._suspects.add(name)
            self._metrics.count_suspect()
            log.warning("unknown name looks like a vendor's, and is not stripped", key=name)
            if len(self._suspects) == MAX_SUSPECTS:
                log.warning("further names that look like a vendor's are not logged", names=MAX_SUSPECTS)

    def blocked(
        self,
        refused: Sequence[tuple[str, SecretKeyVerdict]],
        workspace_id: str,
        resolution: Resolution | None,
        caller: Principal,
    ) -> None:
        """Count and log the refused keys, given by their normalised names."""
        for name, verdict in refused:
            self._metrics.count_blocked_write(verdict.verdict)
            log.info(
                "secret write blocked",
                workspace=workspace_id,
                key=name,
                verdict=verdict.verdict.value,
                principal=caller.name,
                mode=None if resolution is None else resolution.mode.value,
                source=None if resolution is None else resolution.source.value,
            )

    def changed(self, workspace_id: str, change: OverrideChange, by: ChangeNote) -> None:
        """Log a write that changed something; as an error if the database did not record it."""
        recorded = change.current.change_id != change.previous.change_id
        (log.info if recorded else log.error)(
            "workspace billing mode changed" if recorded else "workspace billing mode changed and not recorded",
            workspace=workspace_id,
            previous_override=change.previous.override.text,
            new_override=change.current.override.text,
            principal=by.principal,
            actor=by.actor,
            request_id=by.request_id,
            reason=by.reason,
        )
