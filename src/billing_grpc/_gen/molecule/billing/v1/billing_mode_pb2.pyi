import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BillingMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BILLING_MODE_UNSPECIFIED: _ClassVar[BillingMode]
    BILLING_MODE_PLATFORM_MANAGED: _ClassVar[BillingMode]
    BILLING_MODE_BYOK: _ClassVar[BillingMode]
    BILLING_MODE_DISABLED: _ClassVar[BillingMode]

class BillingModeSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BILLING_MODE_SOURCE_UNSPECIFIED: _ClassVar[BillingModeSource]
    BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE: _ClassVar[BillingModeSource]
    BILLING_MODE_SOURCE_ORG_DEFAULT: _ClassVar[BillingModeSource]
    BILLING_MODE_SOURCE_CONSTANT_FALLBACK: _ClassVar[BillingModeSource]

class SecretVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SECRET_VERDICT_UNSPECIFIED: _ClassVar[SecretVerdict]
    SECRET_VERDICT_ALLOWED: _ClassVar[SecretVerdict]
    SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED: _ClassVar[SecretVerdict]
    SECRET_VERDICT_BLOCKED_RESERVED: _ClassVar[SecretVerdict]

class BillingModeChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BILLING_MODE_CHANGE_KIND_UNSPECIFIED: _ClassVar[BillingModeChangeKind]
    BILLING_MODE_CHANGE_KIND_WORKSPACE: _ClassVar[BillingModeChangeKind]
    BILLING_MODE_CHANGE_KIND_ORG_DEFAULT: _ClassVar[BillingModeChangeKind]
BILLING_MODE_UNSPECIFIED: BillingMode
BILLING_MODE_PLATFORM_MANAGED: BillingMode
BILLING_MODE_BYOK: BillingMode
BILLING_MODE_DISABLED: BillingMode
BILLING_MODE_SOURCE_UNSPECIFIED: BillingModeSource
BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE: BillingModeSource
BILLING_MODE_SOURCE_ORG_DEFAULT: BillingModeSource
BILLING_MODE_SOURCE_CONSTANT_FALLBACK: BillingModeSource
SECRET_VERDICT_UNSPECIFIED: SecretVerdict
SECRET_VERDICT_ALLOWED: SecretVerdict
SECRET_VERDICT_BLOCKED_PLATFORM_MANAGED: SecretVerdict
SECRET_VERDICT_BLOCKED_RESERVED: SecretVerdict
BILLING_MODE_CHANGE_KIND_UNSPECIFIED: BillingModeChangeKind
BILLING_MODE_CHANGE_KIND_WORKSPACE: BillingModeChangeKind
BILLING_MODE_CHANGE_KIND_ORG_DEFAULT: BillingModeChangeKind

class BillingModeResolution(_message.Message):
    __slots__ = ("workspace_id", "resolved_mode", "source", "workspace_override", "org_default", "reason", "error")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_MODE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    ORG_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    resolved_mode: BillingMode
    source: BillingModeSource
    workspace_override: str
    org_default: BillingMode
    reason: str
    error: ResolutionError
    def __init__(self, workspace_id: _Optional[str] = ..., resolved_mode: _Optional[_Union[BillingMode, str]] = ..., source: _Optional[_Union[BillingModeSource, str]] = ..., workspace_override: _Optional[str] = ..., org_default: _Optional[_Union[BillingMode, str]] = ..., reason: _Optional[str] = ..., error: _Optional[_Union[ResolutionError, _Mapping]] = ...) -> None: ...

class ResolutionError(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class WorkspaceBillingMode(_message.Message):
    __slots__ = ("resolution", "etag", "update_time", "updated_by", "name")
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATED_BY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    resolution: BillingModeResolution
    etag: str
    update_time: _timestamp_pb2.Timestamp
    updated_by: str
    name: str
    def __init__(self, resolution: _Optional[_Union[BillingModeResolution, _Mapping]] = ..., etag: _Optional[str] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_by: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class SecretKeyVerdict(_message.Message):
    __slots__ = ("secret_key", "verdict", "message")
    SECRET_KEY_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    secret_key: str
    verdict: SecretVerdict
    message: str
    def __init__(self, secret_key: _Optional[str] = ..., verdict: _Optional[_Union[SecretVerdict, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Catalogue(_message.Message):
    __slots__ = ("set", "version", "digest")
    SET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    set: str
    version: str
    digest: str
    def __init__(self, set: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class BillingModeChange(_message.Message):
    __slots__ = ("change_id", "workspace_id", "change_time", "previous_override", "new_override", "principal", "database_user", "reason", "request_id", "actor", "kind", "server", "origin")
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGE_TIME_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    NEW_OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    DATABASE_USER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    change_id: str
    workspace_id: str
    change_time: _timestamp_pb2.Timestamp
    previous_override: str
    new_override: str
    principal: str
    database_user: str
    reason: str
    request_id: str
    actor: str
    kind: BillingModeChangeKind
    server: str
    origin: str
    def __init__(self, change_id: _Optional[str] = ..., workspace_id: _Optional[str] = ..., change_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., previous_override: _Optional[str] = ..., new_override: _Optional[str] = ..., principal: _Optional[str] = ..., database_user: _Optional[str] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ..., actor: _Optional[str] = ..., kind: _Optional[_Union[BillingModeChangeKind, str]] = ..., server: _Optional[str] = ..., origin: _Optional[str] = ...) -> None: ...

class Inherit(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OrgWide(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
