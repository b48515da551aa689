"""The device's view of the repository: python-tuf's verification over our fetcher and durable storage.

Verification is python-tuf's as it is. Its fetcher is replaced because the repository is behind mutual TLS,
its storage because it does not fsync. Every attack ends in an error with a name of its own (``sync.errors``),
and what was trusted before stays. Expiry never stops what runs: this module is asked only before something
new is activated. Blocking: call it from a worker thread.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import httpx
from tuf.api import exceptions
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from models.digest import Digest
from models.store import MAX_MANIFEST, make_folder, write_durably
from sync.errors import (
    EndlessData,
    LinkDown,
    MetadataExpired,
    MetadataMixed,
    RolledBack,
    UntrustedRelease,
    WrongKeys,
)
from sync.trust import Vouched

FETCH_SECONDS = 120.0
"""The longest that one metadata file or manifest may take: a trickle is a way to freeze a device."""


class HttpFetcher(FetcherInterface):
    """Fetches over an ``httpx`` client, which carries the device's certificate. ``clock`` is in seconds."""

    def __init__(self, client: httpx.Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock

    def _fetch(self, url: str) -> Iterator[bytes]:
        deadline = self._clock() + FETCH_SECONDS
        try:
            with self._client.stream("GET", url) as response:
                if not response.is_success:
                    raise exceptions.DownloadHTTPError(f"{url}: {response.status_code}", response.status_code)
                for block in response.iter_bytes():
                    if self._clock() > deadline:
                        raise exceptions.SlowRetrievalError(f"{url}: not done after {FETCH_SECONDS:.0f} s")
                    yield block
        except httpx.HTTPError as error:
            raise exceptions.DownloadError(f"{url}: {error}") from error


class _DurableUpdater(Updater):
    """python-tuf's updater, with storage that survives a power cut and a clock that is passed in."""

    def at(self, now: datetime) -> None:
        self._trusted_set.reference_time = now

    def manifest(self, target_path: str) -> tuple[str, bytes]:
        target = self.get_targetinfo(target_path)
        if target is None:
            raise UntrustedRelease(f"the signed targets do not list {target_path}")
        if target.length > MAX_MANIFEST:
            raise EndlessData(f"{target_path}: a manifest of {target.length} bytes")
        folder, _, name = target_path.rpartition("/")
        url = f"{self._target_base_url}{folder}/{target.hashes['sha256']}.{name}"
        data = self._fetcher.download_bytes(url, target.length)
        target.verify_length_and_hashes(data)
        return target.hashes["sha256"], data

    def _persist_file(self, filename: str, data: bytes) -> None:
        write_durably(Path(filename), data)


class TufClient:
    """Asks the repository whether it vouches for a release. One at a time per folder.

    ``root`` is the trust anchor from enrolment; ``folder`` keeps what was verified since, which is what makes
    older metadata recognisable. ``url`` ends in ``/tuf``.
    """

    def __init__(self, folder: Path, url: str, root: bytes, fetcher: FetcherInterface) -> None:
        self._folder = folder
        self._url = url.rstrip("/")
        self._root = root
        self._fetcher = fetcher

    def vouch(self, target_path: str, now: datetime) -> Vouched:
        """Refresh all metadata and fetch the manifest at ``target_path``, verified.

        Raises ``RolledBack``, ``MetadataExpired``, ``MetadataMixed``, ``EndlessData``, ``WrongKeys`` or plain
        ``UntrustedRelease``; ``LinkDown`` when the repository cannot be reached or does not answer in time.
        """
        make_folder(self._folder)
        with _named():
            updater = _DurableUpdater(
                metadata_dir=str(self._folder),
                metadata_base_url=f"{self._url}/metadata/",
                target_base_url=f"{self._url}/targets/",
                fetcher=self._fetcher,
                config=UpdaterConfig(),
                bootstrap=self._root,
            )
            updater.at(now)
            sha256, data = updater.manifest(target_path)
        return Vouched(target_path, Digest.from_hex(sha256), data)


@contextmanager
def _named() -> Iterator[None]:
    """python-tuf's errors, by our names. The order matters: narrow classes come first."""
    try:
        yield
    except exceptions.BadVersionNumberError as error:
        raise RolledBack(str(error)) from error
    except exceptions.ExpiredMetadataError as error:
        raise MetadataExpired(
            f"{error}: nothing new is activated until the hub signs fresh metadata"
        ) from error
    except exceptions.LengthOrHashMismatchError as error:
        raise MetadataMixed(str(error)) from error
    except exceptions.UnsignedMetadataError as error:
        raise WrongKeys(str(error)) from error
    except exceptions.RepositoryError as error:
        raise UntrustedRelease(str(error)) from error
    except exceptions.DownloadLengthMismatchError as error:
        raise EndlessData(str(error)) from error
    except exceptions.DownloadError as error:
        raise LinkDown(str(error)) from error
