package billing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// Plan is what to strip from a container's environment and what to set in it; see Apply. SuspectKeys look like a vendor's
// and are in no set; they stay.
type Plan struct {
	Resolution            Resolution        `json:"resolution"`
	StripKeys             []string          `json:"strip_keys"`
	SetEnv                map[string]string `json:"set_env"`
	RouteViaPlatformProxy bool              `json:"route_via_platform_proxy"`
	Catalogue             Catalogue         `json:"catalogue"`
	SuspectKeys           []string          `json:"suspect_keys"`

	blocked names // what Apply removes under platform_managed; nil for the default set of this release
}

// PlanProvisionEnv says what to strip from a container's environment, of which it takes the names, and what to set. Without
// names (nil) it strips every vendor key.
func (c *Client) PlanProvisionEnv(ctx context.Context, workspaceID string, envKeys []string) Plan {
	const method = "PlanProvisionEnv"
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	var askable []string
	for _, key := range envKeys {
		askable = append(askable, sendable(key)...)
	}
	var made Plan
	var strip, suspects []string
	for start := 0; start == 0 || start < len(askable); start += maxEnvKeys {
		batch := askable[start:min(start+maxEnvKeys, len(askable))]
		request := &pb.PlanProvisionEnvRequest{WorkspaceId: workspaceID, EnvKeys: batch}
		answer, reason := ask(ctx, c, method, 1, request, c.stub.PlanProvisionEnv)
		strip, suspects = append(strip, answer.GetStripKeys()...), append(suspects, answer.GetSuspectKeys()...)
		plan, err := Plan{}, error(nil)
		if reason == "" {
			if plan, err = c.readPlan(answer, workspaceID); err != nil {
				reason = c.invalid(ctx, method, 1, err)
			}
		}
		if reason != "" {
			return c.fallbackPlan(fallbackResolution(workspaceID, reason), envKeys, strip)
		}
		c.compare(ctx, method, plan.Catalogue)
		// The first answer decides; the others add what the server strips of further names.
		if start == 0 {
			made = plan
		}
		if made.Resolution.Mode != PlatformManaged {
			made.SuspectKeys = c.suspects(suspects, nil, envKeys)
			return made
		}
	}
	return c.stripping(made, strip, suspects, envKeys)
}

// readPlan takes a plan as it was sent, or says why it cannot be true.
func (c *Client) readPlan(a *pb.PlanProvisionEnvResponse, asked string) (Plan, error) {
	r, err := read(a.GetResolution(), asked, nil)
	plan := Plan{
		Resolution: r, StripKeys: a.GetStripKeys(), SetEnv: a.GetSetEnv(), RouteViaPlatformProxy: a.GetRouteViaPlatformProxy(),
		Catalogue: readCatalogueOf(a.GetCatalogue()),
	}
	if err != nil {
		return plan, err
	}
	for _, variable := range modeVariables {
		if plan.SetEnv[variable] != string(r.Mode) {
			return plan, fmt.Errorf("%s is not the mode", variable)
		}
	}
	closed := r.Mode == PlatformManaged
	if plan.RouteViaPlatformProxy != closed || !closed && len(plan.StripKeys) > 0 {
		return plan, errors.New("it routes or strips as in another mode")
	}
	if slices.ContainsFunc(plan.StripKeys, func(key string) bool { return reserved(normalise(key)) }) {
		return plan, errors.New("it strips what the platform sets")
	}
	for key, value := range plan.SetEnv {
		// Joined to KEY=VALUE, such a name would set another variable.
		if !canBeVariable(key) || strings.Contains(value, "\x00") {
			return plan, errors.New("it sets what can be no variable")
		}
		if closed && c.listed.holds(key) {
			return plan, errors.New("it sets a vendor key")
		}
	}
	return plan, nil
}

// fallbackPlan strips all it knows of, and what an answer that cannot be used would have stripped.
func (c *Client) fallbackPlan(r Resolution, env, server []string) Plan {
	wanted := slices.DeleteFunc(slices.Clone(server), func(key string) bool {
		name := normalise(key)
		return name == "" || reserved(name)
	})
	set := map[string]string{}
	for _, variable := range modeVariables {
		set[variable] = string(r.Mode)
	}
	made := Plan{Resolution: r, SetEnv: set, RouteViaPlatformProxy: true, Catalogue: c.catalogue}
	return c.stripping(made, wanted, nil, env)
}

// stripping completes a closed plan by the names that it strips: those of the environment that are, or that a program could
// take for, a name of the client's or of the server's. Without an environment (nil) it is all of these names.
func (c *Client) stripping(made Plan, server, suspects, env []string) Plan {
	every, theirs := maps.Clone(c.listed), map[string]bool{}
	for _, key := range server {
		theirs[key] = true
		if name := normalise(key); name != "" && !reserved(name) {
			every[name] = true
		}
	}
	strip := map[string]bool{}
	if env == nil {
		maps.Copy(strip, c.listed)
		maps.Copy(strip, theirs)
	}
	for _, key := range env {
		if theirs[key] || every.holds(key) {
			strip[key] = true
		}
	}
	made.StripKeys, made.blocked = slices.Sorted(maps.Keys(strip)), every
	made.SuspectKeys = c.suspects(suspects, strip, env)
	return made
}

// suspects is what the server suspects of the environment, and nobody strips.
func (c *Client) suspects(server []string, strip map[string]bool, env []string) []string {
	present := map[string]bool{}
	for _, key := range env {
		present[key] = true
	}
	found := slices.DeleteFunc(slices.Clone(server), func(key string) bool { return strip[key] || !present[key] })
	slices.Sort(found)
	return slices.Compact(found)
}
