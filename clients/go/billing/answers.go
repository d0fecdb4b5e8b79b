package billing

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// readSecrets takes the verdicts as they were sent, or says why they cannot be true. What the client lists and the server
// does not is blocked as well, unless the mode is open; see lacksMode.
func (c *Client) readSecrets(a *pb.ValidateSecretWriteResponse, asked string, keys []string) (SecretDecision, error) {
	d := SecretDecision{Allowed: true, Catalogue: readCatalogueOf(a.GetCatalogue())}
	if a.GetResolution() != nil {
		r, err := read(a.GetResolution(), asked, nil)
		if err != nil {
			return d, err
		}
		d.Resolution = &r
	}
	if len(a.GetVerdicts()) != len(keys) {
		return d, errors.New("not one verdict for each key")
	}
	closed := d.Resolution != nil && d.Resolution.Mode == PlatformManaged
	open := d.Resolution != nil && !closed
	all := true
	for i, v := range a.GetVerdicts() {
		name, verdict, message := normalise(keys[i]), verdicts[v.GetVerdict()], v.GetMessage()
		switch {
		case v.GetSecretKey() != keys[i] || verdict == "":
			return d, fmt.Errorf("verdict %d is about another key, or none that this client knows", i)
		case name == "" || reserved(name) && verdict != BlockedReserved:
			return d, fmt.Errorf("key %d is reserved or no name, and the verdict is another", i)
		case verdict == BlockedPlatformManaged && !closed:
			return d, fmt.Errorf("key %d is blocked by a mode that is not there", i)
		}
		all = all && verdict == Allowed
		if verdict == Allowed && c.listed.lists(name) && !open {
			verdict, message = BlockedPlatformManaged, "a vendor key to this client: the mode is not known to be open"
		}
		d.Allowed = d.Allowed && verdict == Allowed
		d.Verdicts = append(d.Verdicts, Verdict{keys[i], verdict, message})
	}
	if all != a.GetAllowed() {
		return d, errors.New("the verdicts do not add up")
	}
	return d, nil
}

// lacksMode says whether a key is blocked for want of a mode alone: the client lists it, and the server does not.
func lacksMode(d SecretDecision) bool {
	blocked := func(v Verdict) bool { return v.Verdict == BlockedPlatformManaged }
	return d.Resolution == nil && slices.ContainsFunc(d.Verdicts, blocked)
}

// closedSecrets blocks what depends on the mode. An outage blocks no other secret; of an invalid answer only what it
// plainly allows is allowed.
func (c *Client) closedSecrets(r Resolution, keys []string, a *pb.ValidateSecretWriteResponse) SecretDecision {
	allows := func(v *pb.SecretKeyVerdict) bool { return verdicts[v.GetVerdict()] == Allowed }
	blocks := func(v *pb.SecretKeyVerdict) bool { return !allows(v) }
	plain := len(a.GetVerdicts()) == len(keys) && (a.GetAllowed() || slices.ContainsFunc(a.GetVerdicts(), blocks))
	d := SecretDecision{Allowed: len(keys) > 0, Resolution: &r, Catalogue: c.catalogue}
	for i, key := range keys {
		name, verdict := normalise(key), BlockedPlatformManaged
		switch {
		case reserved(name):
			verdict = BlockedReserved
		case name == "" || c.listed.lists(name):
		case a == nil, plain && a.Verdicts[i].GetSecretKey() == key && allows(a.Verdicts[i]):
			verdict = Allowed
		}
		d.Allowed = d.Allowed && verdict == Allowed
		d.Verdicts = append(d.Verdicts, Verdict{key, verdict, r.Reason})
	}
	return d
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

func readCatalogueOf(p *pb.Catalogue) Catalogue {
	return Catalogue{p.GetSet(), p.GetVersion(), p.GetDigest()}
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
		if plan.SetEnv[variable] != r.Mode {
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

// closedPlan strips all it knows of, and what an answer that cannot be used would have stripped.
func (c *Client) closedPlan(r Resolution, env, server []string) Plan {
	wanted := slices.DeleteFunc(slices.Clone(server), func(key string) bool {
		name := normalise(key)
		return name == "" || reserved(name)
	})
	set := map[string]string{}
	for _, variable := range modeVariables {
		set[variable] = r.Mode
	}
	made := Plan{Resolution: r, SetEnv: set, RouteViaPlatformProxy: true, Catalogue: c.catalogue}
	return c.stripping(made, wanted, nil, env)
}
