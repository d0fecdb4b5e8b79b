package billing

import (
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

const errorDomain = "billing.molecule"

// Error is why a call of administration failed. status.Code sees the call's status in it.
type Error struct {
	Method  string       // as in SetWorkspaceBillingMode
	Reason  Reason       // one of the constants; a newer server may send another
	Message string       // a sentence for people
	Fields  []FieldError // what is wrong with the request, when that is the reason

	cause error
}

// FieldError is one invalid field of a request.
type FieldError struct {
	Field       string // as in secret_keys[3]
	Description string // the problem and the remedy
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s: %s", e.Method, e.Reason, e.Message) }

// OutcomeUnknown says whether a write may have happened although it failed. The call may be repeated.
func (e *Error) OutcomeUnknown() bool {
	switch e.Reason {
	case ServerUnreachable, AnswerInvalid,
		DatabaseUnreachable, DatabaseTimeout, DatabaseStale, SchemaNotReady, DatabaseDenied, ValueUnreadable:
		return true
	}
	return false
}

// Unwrap returns the status with which the call ended.
func (e *Error) Unwrap() error { return e.cause }

// EtagStaleError says that the workspace changed since its etag was read. Nothing was written.
type EtagStaleError struct {
	Current WorkspaceBillingMode // the state after the other change: decide again, and send its etag

	err *Error
}

func (e *EtagStaleError) Error() string { return e.err.Error() }

// Unwrap returns the same failure as an *Error.
func (e *EtagStaleError) Unwrap() error { return e.err }

var (
	unreachable = map[codes.Code]bool{codes.Unavailable: true, codes.DeadlineExceeded: true, codes.Canceled: true}
	byCode      = map[codes.Code]Reason{codes.Unauthenticated: CredentialsInvalid, codes.PermissionDenied: RoleDenied}
	// cutShort has the statuses that a call may have if gRPC or a proxy dropped its answer: then the outcome of a write is
	// unknown. When a network stalls in the middle of an answer, nginx ends the call with Internal and HAProxy with Unknown.
	cutShort = map[codes.Code]bool{
		codes.Unknown: true, codes.Internal: true, codes.DataLoss: true, codes.ResourceExhausted: true,
	}
)

// callError is our error for a call about a workspace that ended with a status. A status without the contract's details may
// be a proxy's or gRPC's own, so it stands for none of the service's reasons.
func callError(method, workspaceID string, err error) error {
	said := status.Convert(err)
	e := &Error{Method: method, Reason: ServerRefused, Message: said.Message(), cause: err}
	if reason, known := byCode[said.Code()]; known {
		e.Reason = reason
	} else if unreachable[said.Code()] {
		e.Reason = ServerUnreachable
	} else if method == setMode && cutShort[said.Code()] {
		e.Reason = AnswerInvalid
	}
	info, bad, current := &errdetails.ErrorInfo{}, &errdetails.BadRequest{}, &pb.WorkspaceBillingMode{}
	if detail(said, info) && info.GetDomain() == errorDomain && info.GetReason() != "" {
		e.Reason = Reason(info.GetReason())
	}
	if detail(said, bad) {
		for _, each := range bad.GetFieldViolations() {
			e.Fields = append(e.Fields, FieldError{each.GetField(), each.GetDescription()})
		}
	}
	if e.Reason == EtagStale && detail(said, current) {
		if state, err := readWorkspace(current, workspaceID); err == nil {
			return &EtagStaleError{state, e}
		}
	}
	return e
}

// detail reads a detail of a status. It does not ask the registry, as Status.Details does, which knows the types of the other
// copy where a program holds two copies of the stubs.
func detail(of *status.Status, into proto.Message) bool {
	for _, each := range of.Proto().GetDetails() {
		if each.MessageIs(into) {
			return each.UnmarshalTo(into) == nil
		}
	}
	return false
}

func invalidAnswer(method string, err error) error {
	return &Error{Method: method, Reason: AnswerInvalid, Message: "the server's answer cannot be used: " + err.Error(), cause: err}
}
