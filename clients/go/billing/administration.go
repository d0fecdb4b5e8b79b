package billing

import (
	"context"
	"errors"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

const (
	actorKey    = "x-billing-actor"
	listChanges = "ListBillingModeChanges"
	setMode     = "SetWorkspaceBillingMode"
)

// WorkspaceBillingMode is the mode of an existing workspace, with its last change.
type WorkspaceBillingMode struct {
	Resolution Resolution
	Etag       string    // give it to Set, to write only if nothing has changed since
	UpdateTime time.Time // of the last change; zero if none was ever recorded
	UpdatedBy  string    // the principal, or "database_user:NAME"; empty if no change was ever recorded
	Name       string    // for people; only Workspaces reads it, where the table has names
}

// Update is the states after and before a write.
type Update struct {
	Current  WorkspaceBillingMode
	Previous Resolution
}

// SetOptions of a write; the zero value writes unconditionally.
type SetOptions struct {
	Reason       string // for the change log: at most 500 characters, without control characters
	Etag         string // write only if the workspace still has it
	ValidateOnly bool   // check everything, write nothing, and return the state that would result
	Actor        string // the person behind this program, for the change log: at most 128 printable ASCII characters
}

// ChangeKind is what a recorded change changed.
type ChangeKind int32

// The kinds, with the numbers of the contract.
const (
	WorkspaceChange  ChangeKind = 1 // the override of a workspace
	OrgDefaultChange ChangeKind = 2 // the organisation's default, as a server first used it
)

// Change is one entry of the change log.
type Change struct {
	ChangeID         string
	Kind             ChangeKind
	WorkspaceID      string // empty for the organisation's default
	ChangeTime       time.Time
	PreviousOverride *string // the stored text; nil if the workspace inherited
	NewOverride      *string // the stored text; nil if the workspace inherits from now on
	Principal        string  // empty if the change did not come through the service
	Actor            string  // the person behind the principal; empty if the caller named none
	DatabaseUser     string
	Reason           string
	RequestID        string
	Server           string // the server that first used the organisation's default
	Origin           string // where that server had it from: "file" or "environment"
}

// Get returns the mode of an existing workspace. There is no fallback: it fails with an *Error.
func (c *Client) Get(ctx context.Context, workspaceID string) (WorkspaceBillingMode, error) {
	const method = "GetWorkspaceBillingMode"
	request := &pb.GetWorkspaceBillingModeRequest{WorkspaceId: workspaceID}
	answer, err := administer(ctx, c, method, workspaceID, request, c.stub.GetWorkspaceBillingMode)
	if err != nil {
		return WorkspaceBillingMode{}, err
	}
	found, err := readWorkspace(answer.GetBillingMode(), workspaceID)
	if err != nil {
		return WorkspaceBillingMode{}, invalidAnswer(method, err)
	}
	return found, nil
}

// Set gives a workspace a mode of its own, from its next start on. It fails with an *EtagStaleError, or else with an *Error.
// After ServerUnreachable, AnswerInvalid and the reasons of the database the outcome is unknown: repeat the call.
func (c *Client) Set(ctx context.Context, workspaceID string, mode Mode, options SetOptions) (Update, error) {
	request := &pb.SetWorkspaceBillingModeRequest{Change: &pb.SetWorkspaceBillingModeRequest_Mode{Mode: mode.Enum()}}
	text := string(mode)
	return c.set(ctx, workspaceID, request, &text, options)
}

// Inherit removes a workspace's own mode, so that it inherits the organisation's default. It fails as Set does.
func (c *Client) Inherit(ctx context.Context, workspaceID string, options SetOptions) (Update, error) {
	request := &pb.SetWorkspaceBillingModeRequest{Change: &pb.SetWorkspaceBillingModeRequest_Inherit{Inherit: &pb.Inherit{}}}
	return c.set(ctx, workspaceID, request, nil, options)
}

func (c *Client) set(
	ctx context.Context, workspaceID string, request *pb.SetWorkspaceBillingModeRequest, override *string, options SetOptions,
) (Update, error) {
	request.WorkspaceId, request.Reason = workspaceID, options.Reason
	request.Etag, request.ValidateOnly = options.Etag, options.ValidateOnly
	if options.Actor != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, actorKey, options.Actor)
	}
	answer, err := administer(ctx, c, setMode, workspaceID, request, c.stub.SetWorkspaceBillingMode)
	if err != nil {
		return Update{}, err
	}
	current, err := readWorkspace(answer.GetBillingMode(), workspaceID)
	if err != nil {
		return Update{}, invalidAnswer(setMode, err)
	}
	previous, err := read(answer.GetPrevious(), workspaceID, nil)
	if err != nil {
		return Update{}, invalidAnswer(setMode, err)
	}
	if found := current.Resolution.WorkspaceOverride; (found == nil) != (override == nil) || found != nil && *found != *override {
		return Update{}, invalidAnswer(setMode, errors.New("it shows another mode than the request wrote"))
	}
	return Update{current, previous}, nil
}

// Changes yields the recorded changes of a workspace, or for an empty id of all and of the organisation's default, newest first. It fetches a page when the
// loop reaches it. An *Error ends the loop: what came before it is right, and not all.
func (c *Client) Changes(ctx context.Context, workspaceID string) iter.Seq2[Change, error] {
	return c.changes(ctx, workspaceID, "", new(string))
}

// Follow yields the changes as Changes does, and then those that were committed since, again and again, each change once. It
// pauses before each time that it asks again. The loop ends with an *Error, also when the context ends.
func (c *Client) Follow(ctx context.Context, workspaceID string, pause time.Duration) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for from := ""; ; {
			var follow string
			for change, err := range c.changes(ctx, workspaceID, from, &follow) {
				if !yield(change, err) || err != nil {
					return
				}
			}
			if follow == "" {
				yield(Change{}, invalidAnswer(listChanges, errors.New("the server or its database lacks an update")))
				return
			}
			select {
			case <-ctx.Done():
				yield(Change{}, callError(listChanges, workspaceID, status.FromContextError(ctx.Err()).Err()))
				return
			case <-time.After(pause):
			}
			from = follow
		}
	}
}

// changes yields the changes of one list, which begins at a page token. At its end it stores the token of what follows.
func (c *Client) changes(ctx context.Context, workspaceID, from string, follow *string) iter.Seq2[Change, error] {
	fetch := func(token string) ([]*pb.BillingModeChange, string, error) {
		if token == "" {
			token = from
		}
		request := &pb.ListBillingModeChangesRequest{WorkspaceId: workspaceID, PageToken: token}
		answer, err := administer(ctx, c, listChanges, workspaceID, request, c.stub.ListBillingModeChanges)
		*follow = answer.GetFollowToken()
		return answer.GetChanges(), answer.GetNextPageToken(), err
	}
	return pages(listChanges, fetch, func(p *pb.BillingModeChange) (Change, error) { return readChange(p, workspaceID) })
}

// administer makes one call with a deadline.
func administer[Q, A any](
	ctx context.Context, c *Client, method, workspaceID string, request Q,
	call func(context.Context, Q, ...grpc.CallOption) (A, error),
) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	answer, err := call(ctx, request)
	if err != nil {
		return answer, callError(method, workspaceID, err)
	}
	return answer, nil
}

// pages yields the items of every page, and ends with the first error.
func pages[P, I any](method string, fetch func(token string) ([]P, string, error), read func(P) (I, error)) iter.Seq2[I, error] {
	return func(yield func(I, error) bool) {
		var none I
		token, seen := "", map[string]bool{}
		for {
			items, next, err := fetch(token)
			if err != nil {
				yield(none, err)
				return
			}
			for _, each := range items {
				item, err := read(each)
				if err != nil {
					yield(none, invalidAnswer(method, err))
					return
				}
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			if seen[next] {
				yield(none, invalidAnswer(method, errors.New("it leads back to an earlier page")))
				return
			}
			token, seen[next] = next, true
		}
	}
}

func readWorkspace(p *pb.WorkspaceBillingMode, asked string) (WorkspaceBillingMode, error) {
	return readState(p, asked, nil)
}

func readState(p *pb.WorkspaceBillingMode, asked string, whatIf *string) (WorkspaceBillingMode, error) {
	resolution, err := read(p.GetResolution(), asked, whatIf)
	if err != nil {
		return WorkspaceBillingMode{}, err
	}
	when, err := readTime(p.GetUpdateTime())
	return WorkspaceBillingMode{resolution, p.GetEtag(), when, p.GetUpdatedBy(), p.GetName()}, err
}

func readChange(p *pb.BillingModeChange, asked string) (Change, error) {
	if asked != "" && !sameID(p.GetWorkspaceId(), asked) {
		return Change{}, errors.New("it is about another workspace")
	}
	kind := ChangeKind(p.GetKind())
	if kind != OrgDefaultChange {
		kind = WorkspaceChange // an older server does not say so
	}
	if (kind == WorkspaceChange) != (p.GetWorkspaceId() != "") {
		return Change{}, errors.New("it holds a change that is neither a workspace's nor the org default's")
	}
	when, err := readTime(p.GetChangeTime())
	return Change{
		p.GetChangeId(), kind, p.GetWorkspaceId(), when, p.PreviousOverride, p.NewOverride,
		p.GetPrincipal(), p.GetActor(), p.GetDatabaseUser(), p.GetReason(), p.GetRequestId(), p.GetServer(), p.GetOrigin(),
	}, err
}

// readTime is the time that was sent; zero where there is none.
func readTime(sent *timestamppb.Timestamp) (time.Time, error) {
	if sent == nil {
		return time.Time{}, nil
	}
	return sent.AsTime(), sent.CheckValid()
}
