package main

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"

	"github.com/molecule-ai/billing-grpc/clients/go/billing"
)

const maxBody = 64 << 10

var canonicalID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// shown is a resolution in the words of the route.
type shown struct {
	WorkspaceID       string         `json:"workspace_id"`
	ResolvedMode      billing.Mode   `json:"resolved_mode"`
	WorkspaceOverride *string        `json:"workspace_override"`
	OrgDefault        billing.Mode   `json:"org_default"`
	Source            billing.Source `json:"source"`
}

func show(r billing.Resolution) shown {
	return shown{r.WorkspaceID, r.Mode, r.WorkspaceOverride, r.OrgDefault, r.Source}
}

// failure is an error in the words of the route. SafeDefault is what to act on meanwhile.
type failure struct {
	Error       string       `json:"error"`
	Detail      string       `json:"detail,omitempty"`
	SafeDefault billing.Mode `json:"safe_default,omitempty"`
	WorkspaceID string       `json:"workspace_id,omitempty"`
}

func routes(client *billing.Client, adminTokenFile string) http.Handler {
	mux := http.NewServeMux()
	route := func(method string, handle func(*billing.Client, http.ResponseWriter, *http.Request, string)) {
		mux.HandleFunc(method+" /admin/workspaces/{id}/llm-billing-mode", func(w http.ResponseWriter, r *http.Request) {
			id := strings.TrimSpace(r.PathValue("id"))
			switch {
			case !authorised(r, adminTokenFile):
				answer(w, http.StatusUnauthorized, failure{Error: "unauthorized"})
			case !canonicalID.MatchString(id):
				answer(w, http.StatusBadRequest, failure{Error: "invalid workspace id"})
			default:
				handle(client, w, r, id)
			}
		})
	}
	route("GET", get)
	route("PUT", put)
	return mux
}

// authorised reads the token at every request, so that it rotates. Without a token nobody is let in.
func authorised(r *http.Request, file string) bool {
	content, err := os.ReadFile(file)
	token := bytes.TrimSpace(content)
	sent, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return err == nil && len(token) > 0 && found && subtle.ConstantTimeCompare([]byte(sent), token) == 1
}

// get answers a workspace that does not exist with the organisation's value, as the route did: a decision, not administration.
func get(client *billing.Client, w http.ResponseWriter, r *http.Request, id string) {
	resolution := client.Resolve(r.Context(), id)
	if resolution.Error != "" {
		answer(w, http.StatusInternalServerError,
			failure{"failed to resolve billing mode", string(resolution.Error), resolution.Mode, id})
		return
	}
	answer(w, http.StatusOK, show(resolution))
}

func put(client *billing.Client, w http.ResponseWriter, r *http.Request, id string) {
	mode, err := wanted(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		answer(w, http.StatusBadRequest, failure{Error: err.Error()})
		return
	}
	options := billing.SetOptions{Reason: "set through the admin route"}
	var update billing.Update
	if mode == nil {
		update, err = client.Inherit(r.Context(), id, options)
	} else {
		update, err = client.Set(r.Context(), id, *mode, options)
	}
	var failed *billing.Error
	switch {
	case err == nil:
		answer(w, http.StatusOK, show(update.Current.Resolution))
	case errors.As(err, &failed) && failed.Reason == billing.WorkspaceNotFound:
		answer(w, http.StatusNotFound, failure{Error: "workspace not found"})
	default:
		answer(w, http.StatusInternalServerError,
			failure{"failed to set billing mode", err.Error(), billing.PlatformManaged, id})
	}
}

// wanted is the mode that a body asks for; nil clears the override. A missing field and null are different things.
func wanted(body io.Reader) (*billing.Mode, error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, errors.New("the body cannot be read, or is too long")
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(content, &fields) != nil {
		return nil, errors.New("the body is no JSON object")
	}
	field, present := fields["mode"]
	if !present {
		return nil, errors.New("missing required field 'mode' (use null to clear override)")
	}
	var text *string
	if json.Unmarshal(field, &text) != nil {
		return nil, errors.New("'mode' must be a string or null")
	}
	if text == nil {
		return nil, nil
	}
	mode, err := billing.ParseMode(strings.TrimSpace(*text))
	return &mode, err
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller is gone
}
