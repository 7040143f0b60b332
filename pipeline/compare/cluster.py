"""Cells measured by the workers of a Dask cluster; what they find flows back into the one ledger.

A worker measures a whole cell, so one that dies costs that cell alone, which is then given to another.
"""

import asyncio
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from native.errors import NativeError
from pipeline.compare.cell import Cell
from pipeline.compare.measuring import CellJob, CellProgress, measure_cell
from pipeline.errors import SurgeryError, UsageError

if TYPE_CHECKING:
    from pipeline.compare.run import CellEvent

SECONDS_TO_CONNECT = 10
CERTIFICATES = "distributed.comm.tls.ca-file, client.cert and client.key in Dask's configuration"


class ClusterRunner:
    """A `pipeline.compare.run.Runner` on the cluster of a Dask scheduler.

    Raises UsageError when dask is not installed, and for an address at which nothing answers.
    """

    def __init__(self, address: str) -> None:
        try:
            from dask.distributed import Client
        except ImportError:
            raise UsageError("`scheduler`: needs Dask; run: pip install 'surgery[cluster]'") from None
        _require_answer(address)
        try:
            self.client: Any = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError.of("scheduler", address, f"no Dask scheduler answers there ({error})") from None

    def __call__(self, jobs: Iterator[CellJob]) -> "Iterator[tuple[Cell, CellEvent]]":
        from dask.distributed import KilledWorker, as_completed

        futures = {self.client.submit(measure_whole_cell, job, pure=False): job for job in jobs}
        try:
            for future in as_completed(futures, loop=self.client.loop):
                cell, error = futures[future].cell, future.exception()
                if isinstance(error, KilledWorker):
                    yield cell, SurgeryError("every worker that tried it died")
                elif isinstance(error, (SurgeryError, NativeError)):
                    yield cell, error
                elif error is not None:
                    yield cell, SurgeryError(f"{type(error).__name__}: {error}")
                else:
                    for event in future.result():
                        yield cell, event
                future.release()
        finally:
            self.client.cancel(list(futures))
            self.client.close()


def _require_answer(address: str) -> None:
    """Raise UsageError unless Dask answers there: its client would try for long, or wait for ever on what is silent."""
    from dask import distributed

    dask: Any = distributed  # of which only some is typed
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("", "tcp", "tls") or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError.of("scheduler", address, "expected an address such as tcp://10.0.0.1:8786")

    try:
        as_client = dask.Security().get_connection_args("client")  # as Dask's configuration says, and as its client is
    except OSError as error:
        raise UsageError.of("scheduler", address, f"cannot read what {CERTIFICATES} name ({error.strerror})") from None
    if scheme == "tls" and as_client["ssl_context"] is None:
        raise UsageError.of("scheduler", address, f"needs certificates; name them as {CERTIFICATES}")

    async def greet() -> None:
        connecting = dask.comm.connect(address, timeout=SECONDS_TO_CONNECT, **as_client)
        (await asyncio.wait_for(connecting, SECONDS_TO_CONNECT + 1)).abort()

    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_CONNECT).close()  # a refusal at once
        asyncio.run(greet())
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it says nothing"
        raise UsageError.of("scheduler", address, f"no Dask scheduler answers there ({reason})") from None


def measure_whole_cell(job: CellJob) -> list[CellProgress]:
    """What a worker does: all that is missing of a cell."""
    return list(measure_cell(job))
