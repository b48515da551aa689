"""Errors of ``sync``.

::

    SyncError
    ├── InvalidMessage           bytes from a peer that are not a message of its channel
    ├── InvalidTopic             a topic outside the table of channels
    ├── VerificationFailed       a claim that cryptography does not support
    │   ├── BadSignature
    │   ├── UntrustedRelease     the image side (TUF) does not vouch for it
    │   │   ├── RolledBack           metadata older than what was already trusted
    │   │   ├── MetadataExpired      metadata past its date: a freeze, or a hub that sleeps
    │   │   ├── MetadataMixed        files that do not belong to one repository state
    │   │   ├── EndlessData          more bytes than the signed length
    │   │   └── WrongKeys            fewer valid signatures than the threshold
    │   ├── StaleDesired         a desired state older than one already accepted
    │   └── AuditBroken          a trail that does not verify; names the record
    ├── BlobMissing              the peer does not have a blob that was asked for
    ├── IllegalTransition        a release cannot go from its state to the one asked for
    ├── EnrolmentRefused         the hub does not take this device: a spent or unknown secret
    ├── LinkDown                 the peer cannot be reached now; try again later
    ├── StoreFull                no room for what must be durable
    └── StoreUnusable            the store is closed, corrupt, foreign or of a newer version
"""


class SyncError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidMessage(SyncError):
    """Bytes from a peer are not a message of their channel."""


class InvalidTopic(SyncError):
    """A topic is not in the table of channels."""


class VerificationFailed(SyncError):
    """Cryptography does not support a claim. Never retried with the same bytes."""


class BadSignature(VerificationFailed):
    """A signature does not verify under the expected key."""


class UntrustedRelease(VerificationFailed):
    """The signed repository metadata does not vouch for a release."""


class RolledBack(UntrustedRelease):
    """Metadata is older than what was already trusted."""


class MetadataExpired(UntrustedRelease):
    """Metadata is past its date. What runs keeps running; nothing new is activated."""


class MetadataMixed(UntrustedRelease):
    """Metadata or manifest do not belong to one state of the repository."""


class EndlessData(UntrustedRelease):
    """More bytes were sent than the signed metadata allows."""


class WrongKeys(UntrustedRelease):
    """Fewer keys signed than the threshold demands, or other keys."""


class StaleDesired(VerificationFailed):
    """A desired state is older than one that was already accepted."""


class AuditBroken(VerificationFailed):
    """An audit trail does not verify; the message names the record."""


class BlobMissing(SyncError):
    """The peer does not have the blob, or not that part of it."""


class IllegalTransition(SyncError):
    """A release cannot go from its state to the one that was asked for."""


class EnrolmentRefused(SyncError):
    """The hub does not take this device."""


class LinkDown(SyncError):
    """The peer cannot be reached now."""


class StoreFull(SyncError):
    """There is no room for what must be durable."""


class StoreUnusable(SyncError):
    """The store is closed, corrupt, not ours or written by a newer version; the message says which."""
