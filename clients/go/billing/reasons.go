package billing

// Reason is why a call failed or why a decision is the fallback. The texts are part of the contract.
type Reason string

// The reasons of fallbacks that a client makes, and of calls that it could not complete. No server sends them.
const (
	ServerUnreachable Reason = "SERVER_UNREACHABLE" // no connection, or no answer in time; the outcome of a write is unknown
	ServerRefused     Reason = "SERVER_REFUSED"     // a status that has no reason of its own here, perhaps of a proxy
	AnswerInvalid     Reason = "ANSWER_INVALID"     // garbled, unknown or contradictory, or the answer to a write was cut short; the outcome of a write is unknown
)

// The server could not ask its database: the status is UNAVAILABLE and the call may be repeated, or a decision's Error says
// it. After a write the outcome is unknown.
const (
	DatabaseUnreachable Reason = "DATABASE_UNREACHABLE" // refused, reset, restarting
	DatabaseTimeout     Reason = "DATABASE_TIMEOUT"     // hung, locked, or no free connection in time
	DatabaseStale       Reason = "DATABASE_STALE"       // a standby, a replica or a read-only server
	SchemaNotReady      Reason = "SCHEMA_NOT_READY"     // the migrations were not run
	DatabaseDenied      Reason = "DATABASE_DENIED"      // the service's role lacks a right
	ValueUnreadable     Reason = "VALUE_UNREADABLE"     // a stored text that cannot be read, or two rows for one id
)

// The request is wrong, and repeating it does not help: INVALID_ARGUMENT.
const (
	WorkspaceIDInvalid Reason = "WORKSPACE_ID_INVALID"
	CountOutOfRange    Reason = "COUNT_OUT_OF_RANGE"
	ChangeRequired     Reason = "CHANGE_REQUIRED"
	ModeInvalid        Reason = "MODE_INVALID"
	ScopeRequired      Reason = "SCOPE_REQUIRED"
	TextInvalid        Reason = "TEXT_INVALID"
	SecretKeyInvalid   Reason = "SECRET_KEY_INVALID"
	PageTokenInvalid   Reason = "PAGE_TOKEN_INVALID"
	FilterInvalid      Reason = "FILTER_INVALID"
)

// The other reasons, each with its status.
const (
	WorkspaceNotFound  Reason = "WORKSPACE_NOT_FOUND" // NOT_FOUND
	EtagStale          Reason = "ETAG_STALE"          // ABORTED; see EtagStaleError
	CredentialsInvalid Reason = "CREDENTIALS_INVALID" // UNAUTHENTICATED
	RoleDenied         Reason = "ROLE_DENIED"         // PERMISSION_DENIED
	Overloaded         Reason = "OVERLOADED"          // RESOURCE_EXHAUSTED: repeat after a pause
	WriteNotApplied    Reason = "WRITE_NOT_APPLIED"   // FAILED_PRECONDITION: the database undid the write
	ChangeNotRecorded  Reason = "CHANGE_NOT_RECORDED" // FAILED_PRECONDITION: the change log did not take it
)
