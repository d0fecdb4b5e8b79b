package billing

import (
	"context"
	"errors"
	"iter"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// OverrideFilter is which workspaces a list shows by what is stored for them.
type OverrideFilter int32

// The filters by override, with the numbers of the contract.
const (
	AnyOverride          OverrideFilter = iota // all, also those that inherit
	WithOverride                               // those with an override, recognised or not
	UnrecognisedOverride                       // those whose override is no mode, or cannot be read
)

// Filter narrows a list of workspaces; the zero value lists all.
type Filter struct {
	Mode        Mode           // only those that resolve to it
	Source      Source         // only those whose mode this rule decides
	Override    OverrideFilter // only those for which this is stored
	OrgDefault  *string        // what if: resolve every workspace with this org default
	WouldChange bool           // only those whose mode is another under OrgDefault than now
}

var errLeftOut = errors.New("it shows a workspace that the request left out")

// Workspaces yields the existing workspaces in the order of their ids. It fetches a page when the loop reaches it. An *Error
// ends the loop: what came before it is right, and not all. A workspace whose override cannot be read has an Error in its
// resolution, which is closed.
func (c *Client) Workspaces(ctx context.Context, filter Filter) iter.Seq2[WorkspaceBillingMode, error] {
	const method = "ListWorkspaceBillingModes"
	return func(yield func(WorkspaceBillingMode, error) bool) {
		request, err := filter.request()
		if err != nil {
			yield(WorkspaceBillingMode{}, &Error{Method: method, Reason: FilterInvalid, Message: err.Error(), cause: err})
			return
		}
		last := ""
		fetch := func(token string) ([]*pb.WorkspaceBillingMode, string, error) {
			request.PageToken = token
			answer, err := administer(ctx, c, method, "", request, c.stub.ListWorkspaceBillingModes)
			return answer.GetBillingModes(), answer.GetNextPageToken(), err
		}
		pages(method, fetch, func(p *pb.WorkspaceBillingMode) (WorkspaceBillingMode, error) {
			found, err := filter.read(p, last)
			last = found.Resolution.WorkspaceID
			return found, err
		})(yield)
	}
}

// request is the filter as it is sent. A text that is no mode or source would be sent as no filter.
func (f Filter) request() (*pb.ListWorkspaceBillingModesRequest, error) {
	request := &pb.ListWorkspaceBillingModesRequest{
		ResolvedMode: f.Mode.Enum(), Source: f.Source.enum(), Override: pb.OverrideFilter(f.Override),
		OrgDefault: f.OrgDefault, WouldChange: f.WouldChange,
	}
	if f.Mode != "" && request.ResolvedMode == 0 || f.Source != "" && request.Source == 0 {
		return nil, errors.New("the filter's Mode or Source is not one of the constants")
	}
	return request, nil
}

// read takes a workspace of a list as it was sent, or says why it does not belong there.
func (f Filter) read(p *pb.WorkspaceBillingMode, after string) (WorkspaceBillingMode, error) {
	id := p.GetResolution().GetWorkspaceId()
	if !uuid.MatchString(id) || id <= after {
		return WorkspaceBillingMode{}, errors.New("its workspaces are not in the order of their ids")
	}
	found, err := readState(p, id, f.OrgDefault)
	if err != nil {
		return found, err
	}
	resolution := found.Resolution
	if f.Mode != "" && f.Mode != resolution.Mode || f.Source != "" && f.Source != resolution.Source {
		return found, errLeftOut
	}
	if text := resolution.WorkspaceOverride; f.Override != AnyOverride && resolution.Error == "" {
		if text == nil || f.Override == UnrecognisedOverride && Mode(*text).Enum() != 0 {
			return found, errLeftOut
		}
	}
	return found, nil
}
