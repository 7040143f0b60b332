"""Models at the hub, through huggingface_hub: its cache, resumed downloads, tokens and environment variables."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from pipeline.errors import SurgeryError
from pipeline.extras import require


@contextmanager
def contact(name: str) -> Iterator[Any]:
    """huggingface_hub, to fetch `name` with; what goes wrong with it becomes a SurgeryError, in one line."""
    package = require("huggingface_hub", "hub", f"{name}: fetching a model from the hub")
    _ = package.snapshot_download  # the package loads its parts when they are asked for, this one nearly all
    package.utils.logging.set_verbosity_error()  # retries and the like; what fails is raised
    if not sys.stderr.isatty():
        package.utils.disable_progress_bars()
    try:
        yield package
    except SurgeryError:
        raise
    except Exception as error:  # of several packages, and named in none of their documentation
        raise _explained(package, name, error) from error


def _explained(package: ModuleType, name: str, error: BaseException) -> SurgeryError:
    """What a failed download means for the user."""
    errors = package.errors
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    repository = name.partition("@")[0]

    def has(kind: type[BaseException]) -> bool:
        return any(isinstance(link, kind) for link in chain)

    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if any(isinstance(link, OSError) and link.errno in full for link in chain):
        return SurgeryError(
            f"{name}: no space left in the hub's cache, {package.constants.HF_HUB_CACHE}; make room, or set HF_HOME to a folder elsewhere"
        )
    if denied := next((link for link in chain if isinstance(link, PermissionError)), None):
        return SurgeryError(f"{name}: the hub's cache cannot be written: {denied}; set HF_HOME to a folder of yours")
    if has(errors.GatedRepoError):
        return SurgeryError(
            f"{name}: access is restricted; accept its terms at {package.constants.ENDPOINT}/{repository}, then run: hf auth login"
        )
    if has(errors.RevisionNotFoundError):
        return SurgeryError(f"{name}: the hub has {repository}, but no such revision; leave out @ and what follows")
    if has(errors.RepositoryNotFoundError):
        return SurgeryError(
            f"{name}: neither a file or folder here nor a model at the hub; check the name, and if it is private run: hf auth login"
        )
    if has(errors.OfflineModeIsEnabled) or package.constants.HF_HUB_OFFLINE:
        return SurgeryError(f"{name}: is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it")
    statuses = [link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)]
    if 401 in statuses or 403 in statuses:
        return SurgeryError(f"{name}: the hub refuses access; check your token, or run: hf auth login")
    if statuses:
        return SurgeryError(f"{name}: the hub answered with error {statuses[0]}; try again later")
    reason = str(chain[-1]).strip().splitlines()
    return SurgeryError(
        f"{name}: the hub at {package.constants.ENDPOINT} cannot be reached ({reason[0] if reason else type(chain[-1]).__name__});"
        " check the network and run the same command again"
    )
