import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from billing_grpc._gen.molecule.billing.v1 import billing_mode_pb2 as _billing_mode_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OverrideFilter(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OVERRIDE_FILTER_UNSPECIFIED: _ClassVar[OverrideFilter]
    OVERRIDE_FILTER_PRESENT: _ClassVar[OverrideFilter]
    OVERRIDE_FILTER_UNRECOGNISED: _ClassVar[OverrideFilter]
OVERRIDE_FILTER_UNSPECIFIED: OverrideFilter
OVERRIDE_FILTER_PRESENT: OverrideFilter
OVERRIDE_FILTER_UNRECOGNISED: OverrideFilter

class ResolveBillingModeRequest(_message.Message):
    __slots__ = ("workspace_id", "org_default")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    ORG_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    org_default: str
    def __init__(self, workspace_id: _Optional[str] = ..., org_default: _Optional[str] = ...) -> None: ...

class ResolveBillingModeResponse(_message.Message):
    __slots__ = ("resolution",)
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    resolution: _billing_mode_pb2.BillingModeResolution
    def __init__(self, resolution: _Optional[_Union[_billing_mode_pb2.BillingModeResolution, _Mapping]] = ...) -> None: ...

class BatchResolveBillingModesRequest(_message.Message):
    __slots__ = ("workspace_ids", "org_default")
    WORKSPACE_IDS_FIELD_NUMBER: _ClassVar[int]
    ORG_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    workspace_ids: _containers.RepeatedScalarFieldContainer[str]
    org_default: str
    def __init__(self, workspace_ids: _Optional[_Iterable[str]] = ..., org_default: _Optional[str] = ...) -> None: ...

class BatchResolveBillingModesResponse(_message.Message):
    __slots__ = ("resolutions",)
    RESOLUTIONS_FIELD_NUMBER: _ClassVar[int]
    resolutions: _containers.RepeatedCompositeFieldContainer[_billing_mode_pb2.BillingModeResolution]
    def __init__(self, resolutions: _Optional[_Iterable[_Union[_billing_mode_pb2.BillingModeResolution, _Mapping]]] = ...) -> None: ...

class GetWorkspaceBillingModeRequest(_message.Message):
    __slots__ = ("workspace_id",)
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    def __init__(self, workspace_id: _Optional[str] = ...) -> None: ...

class GetWorkspaceBillingModeResponse(_message.Message):
    __slots__ = ("billing_mode",)
    BILLING_MODE_FIELD_NUMBER: _ClassVar[int]
    billing_mode: _billing_mode_pb2.WorkspaceBillingMode
    def __init__(self, billing_mode: _Optional[_Union[_billing_mode_pb2.WorkspaceBillingMode, _Mapping]] = ...) -> None: ...

class SetWorkspaceBillingModeRequest(_message.Message):
    __slots__ = ("workspace_id", "mode", "inherit", "reason", "etag", "validate_only")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    INHERIT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    mode: _billing_mode_pb2.BillingMode
    inherit: _billing_mode_pb2.Inherit
    reason: str
    etag: str
    validate_only: bool
    def __init__(self, workspace_id: _Optional[str] = ..., mode: _Optional[_Union[_billing_mode_pb2.BillingMode, str]] = ..., inherit: _Optional[_Union[_billing_mode_pb2.Inherit, _Mapping]] = ..., reason: _Optional[str] = ..., etag: _Optional[str] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class SetWorkspaceBillingModeResponse(_message.Message):
    __slots__ = ("billing_mode", "previous")
    BILLING_MODE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    billing_mode: _billing_mode_pb2.WorkspaceBillingMode
    previous: _billing_mode_pb2.BillingModeResolution
    def __init__(self, billing_mode: _Optional[_Union[_billing_mode_pb2.WorkspaceBillingMode, _Mapping]] = ..., previous: _Optional[_Union[_billing_mode_pb2.BillingModeResolution, _Mapping]] = ...) -> None: ...

class ValidateSecretWriteRequest(_message.Message):
    __slots__ = ("workspace_id", "org_wide", "secret_keys")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    ORG_WIDE_FIELD_NUMBER: _ClassVar[int]
    SECRET_KEYS_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    org_wide: _billing_mode_pb2.OrgWide
    secret_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workspace_id: _Optional[str] = ..., org_wide: _Optional[_Union[_billing_mode_pb2.OrgWide, _Mapping]] = ..., secret_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class ValidateSecretWriteResponse(_message.Message):
    __slots__ = ("allowed", "verdicts", "resolution", "catalogue")
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    allowed: bool
    verdicts: _containers.RepeatedCompositeFieldContainer[_billing_mode_pb2.SecretKeyVerdict]
    resolution: _billing_mode_pb2.BillingModeResolution
    catalogue: _billing_mode_pb2.Catalogue
    def __init__(self, allowed: _Optional[bool] = ..., verdicts: _Optional[_Iterable[_Union[_billing_mode_pb2.SecretKeyVerdict, _Mapping]]] = ..., resolution: _Optional[_Union[_billing_mode_pb2.BillingModeResolution, _Mapping]] = ..., catalogue: _Optional[_Union[_billing_mode_pb2.Catalogue, _Mapping]] = ...) -> None: ...

class PlanProvisionEnvRequest(_message.Message):
    __slots__ = ("workspace_id", "env_keys")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    ENV_KEYS_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    env_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workspace_id: _Optional[str] = ..., env_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanProvisionEnvResponse(_message.Message):
    __slots__ = ("resolution", "strip_keys", "set_env", "route_via_platform_proxy", "catalogue", "suspect_keys")
    class SetEnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    STRIP_KEYS_FIELD_NUMBER: _ClassVar[int]
    SET_ENV_FIELD_NUMBER: _ClassVar[int]
    ROUTE_VIA_PLATFORM_PROXY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_KEYS_FIELD_NUMBER: _ClassVar[int]
    resolution: _billing_mode_pb2.BillingModeResolution
    strip_keys: _containers.RepeatedScalarFieldContainer[str]
    set_env: _containers.ScalarMap[str, str]
    route_via_platform_proxy: bool
    catalogue: _billing_mode_pb2.Catalogue
    suspect_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, resolution: _Optional[_Union[_billing_mode_pb2.BillingModeResolution, _Mapping]] = ..., strip_keys: _Optional[_Iterable[str]] = ..., set_env: _Optional[_Mapping[str, str]] = ..., route_via_platform_proxy: _Optional[bool] = ..., catalogue: _Optional[_Union[_billing_mode_pb2.Catalogue, _Mapping]] = ..., suspect_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class ListBillingModeChangesRequest(_message.Message):
    __slots__ = ("workspace_id", "page_size", "page_token", "kind")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    page_size: int
    page_token: str
    kind: _billing_mode_pb2.BillingModeChangeKind
    def __init__(self, workspace_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., kind: _Optional[_Union[_billing_mode_pb2.BillingModeChangeKind, str]] = ...) -> None: ...

class ListBillingModeChangesResponse(_message.Message):
    __slots__ = ("changes", "next_page_token", "follow_token")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_TOKEN_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[_billing_mode_pb2.BillingModeChange]
    next_page_token: str
    follow_token: str
    def __init__(self, changes: _Optional[_Iterable[_Union[_billing_mode_pb2.BillingModeChange, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., follow_token: _Optional[str] = ...) -> None: ...

class ListWorkspaceBillingModesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "org_default", "resolved_mode", "source", "override", "would_change")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ORG_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_MODE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    WOULD_CHANGE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    org_default: str
    resolved_mode: _billing_mode_pb2.BillingMode
    source: _billing_mode_pb2.BillingModeSource
    override: OverrideFilter
    would_change: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., org_default: _Optional[str] = ..., resolved_mode: _Optional[_Union[_billing_mode_pb2.BillingMode, str]] = ..., source: _Optional[_Union[_billing_mode_pb2.BillingModeSource, str]] = ..., override: _Optional[_Union[OverrideFilter, str]] = ..., would_change: _Optional[bool] = ...) -> None: ...

class ListWorkspaceBillingModesResponse(_message.Message):
    __slots__ = ("billing_modes", "next_page_token")
    BILLING_MODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    billing_modes: _containers.RepeatedCompositeFieldContainer[_billing_mode_pb2.WorkspaceBillingMode]
    next_page_token: str
    def __init__(self, billing_modes: _Optional[_Iterable[_Union[_billing_mode_pb2.WorkspaceBillingMode, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SummarizeBillingModesRequest(_message.Message):
    __slots__ = ("org_default",)
    ORG_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    org_default: str
    def __init__(self, org_default: _Optional[str] = ...) -> None: ...

class SummarizeBillingModesResponse(_message.Message):
    __slots__ = ("workspaces", "counts", "unrecognised_overrides", "org_default", "read_time", "moves")
    WORKSPACES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    UNRECOGNISED_OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    ORG_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    READ_TIME_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    workspaces: int
    counts: _containers.RepeatedCompositeFieldContainer[BillingModeCount]
    unrecognised_overrides: int
    org_default: _billing_mode_pb2.BillingMode
    read_time: _timestamp_pb2.Timestamp
    moves: _containers.RepeatedCompositeFieldContainer[BillingModeMove]
    def __init__(self, workspaces: _Optional[int] = ..., counts: _Optional[_Iterable[_Union[BillingModeCount, _Mapping]]] = ..., unrecognised_overrides: _Optional[int] = ..., org_default: _Optional[_Union[_billing_mode_pb2.BillingMode, str]] = ..., read_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., moves: _Optional[_Iterable[_Union[BillingModeMove, _Mapping]]] = ...) -> None: ...

class BillingModeCount(_message.Message):
    __slots__ = ("mode", "source", "workspaces")
    MODE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    WORKSPACES_FIELD_NUMBER: _ClassVar[int]
    mode: _billing_mode_pb2.BillingMode
    source: _billing_mode_pb2.BillingModeSource
    workspaces: int
    def __init__(self, mode: _Optional[_Union[_billing_mode_pb2.BillingMode, str]] = ..., source: _Optional[_Union[_billing_mode_pb2.BillingModeSource, str]] = ..., workspaces: _Optional[int] = ...) -> None: ...

class BillingModeMove(_message.Message):
    __slots__ = ("from_mode", "to_mode", "workspaces")
    FROM_MODE_FIELD_NUMBER: _ClassVar[int]
    TO_MODE_FIELD_NUMBER: _ClassVar[int]
    WORKSPACES_FIELD_NUMBER: _ClassVar[int]
    from_mode: _billing_mode_pb2.BillingMode
    to_mode: _billing_mode_pb2.BillingMode
    workspaces: int
    def __init__(self, from_mode: _Optional[_Union[_billing_mode_pb2.BillingMode, str]] = ..., to_mode: _Optional[_Union[_billing_mode_pb2.BillingMode, str]] = ..., workspaces: _Optional[int] = ...) -> None: ...
