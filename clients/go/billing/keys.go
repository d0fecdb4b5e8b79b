package billing

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// The sets of vendor names; each holds the ones before it.
const (
	Core    = "core"
	Agents  = "agents"
	Vendors = "vendors"
)

const (
	reservedPrefix = "MOLECULE_LLM_"
	edges          = ".-" // valid in a name; at its ends, some programs drop them
	maxSentBytes   = 512  // of a name; longer ones, which hold more space than name, are not sent
)

//go:embed blocked_keys.json
var catalogueFile []byte

var (
	catalogue     = readCatalogue()
	modeVariables = []string{"MOLECULE_LLM_BILLING_MODE", "MOLECULE_LLM_BILLING_MODE_RESOLVED"}

	keyName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}$`)
	runs    = regexp.MustCompile(`[A-Za-z0-9_.-]+`)
)

// names is a set of normalised names of keys.
type names map[string]bool

func trim(key string) string {
	// The separators U+001C to U+001F are space to the server, and not to Go.
	return strings.TrimFunc(key, func(r rune) bool { return unicode.IsSpace(r) || 0x1c <= r && r <= 0x1f })
}

// normalise is the name that a key is looked up by; empty when it is no key's name.
func normalise(key string) string {
	if trimmed := trim(key); keyName.MatchString(trimmed) {
		return strings.ToUpper(trimmed)
	}
	return ""
}

// canBeSent says whether a server is asked about this key: it is a key's name, and is alone no reason to refuse the call.
func canBeSent(key string) bool { return normalise(key) != "" && len(key) <= maxSentBytes }

func reserved(name string) bool { return strings.HasPrefix(name, reservedPrefix) }

// vendorNames is the catalogue of vendor names of this release, and the characters that hide one.
type vendorNames struct {
	Version        string
	ReservedPrefix string `json:"reserved_prefix"`
	Digests        map[string]string
	Sets           map[string][]string
	LookAlikes     map[string]string `json:"look_alikes"`
}

func readCatalogue() (found vendorNames) {
	if err := json.Unmarshal(catalogueFile, &found); err != nil {
		panic("blocked_keys.json beside this package cannot be read: " + err.Error())
	}
	return found
}

// listed is the names of a set of the catalogue, and the names among these. An unknown set is the largest: a mistake must
// not open.
func listed(set string, extra []string) names {
	keys, known := catalogue.Sets[set]
	if !known {
		keys = catalogue.Sets[Vendors]
	}
	found := names{}
	for _, key := range slices.Concat(keys, extra) {
		if name := normalise(key); name != "" && !reserved(name) {
			found[name] = true
		}
	}
	return found
}

// holds says whether a variable's name is one of these, or could be taken for one: shells, os/exec and loaders of
// environment files split a name at, or drop, what belongs to no name, as a byte order mark, quotes, `export ` or `=`. In
// other letters than ASCII's it is also what Windows makes of them; see nearestASCII.
func (n names) holds(variable string) bool {
	isNot := func(r rune) bool { return r > unicode.MaxASCII }
	return n.holdsAsSpelt(variable) || strings.ContainsFunc(variable, isNot) && n.holdsAsSpelt(nearestASCII(variable))
}

func (n names) holdsAsSpelt(variable string) bool {
	return slices.ContainsFunc(namesIn(variable), n.lists)
}

// namesIn is the names, in upper case, that a program could take a variable's name for.
func namesIn(variable string) []string {
	parts := runs.FindAllString(variable, -1)
	if len(parts) != 1 {
		parts = append(parts, strings.Join(parts, ""))
	}
	for i, part := range parts {
		parts[i] = strings.ToUpper(part)
	}
	return parts
}

// sendable is the names to ask about instead of a variable's: itself, or those that a program could take it for. A malformed
// name may not even be UTF-8, and after an equals sign it may hold a value.
func sendable(variable string) []string {
	if canBeSent(variable) {
		return []string{variable}
	}
	before, _, _ := strings.Cut(variable, "=")
	found := slices.Concat(namesIn(before), namesIn(nearestASCII(before)))
	for _, name := range found {
		found = append(found, strings.Trim(name, edges))
	}
	slices.Sort(found)
	return slices.DeleteFunc(slices.Compact(found), func(name string) bool { return !canBeSent(name) })
}

// digest identifies a set of names as the server does it.
func (n names) digest() string {
	sum := sha256.Sum256([]byte(strings.Join(slices.Sorted(maps.Keys(n)), "\n")))
	return hex.EncodeToString(sum[:])[:12]
}

// lists looks a normalised name up. No name begins or ends with . or -, unless somebody listed it so.
func (n names) lists(name string) bool { return n[name] || n[strings.Trim(name, edges)] }

// toASCII maps what Windows replaces with an ASCII character and Unicode does not decompose into it.
var toASCII = func() map[rune]rune {
	found := map[rune]rune{}
	for like, others := range catalogue.LookAlikes {
		for _, other := range others {
			found[other] = rune(like[0])
		}
	}
	return found
}()

// nearestASCII is full-width, accented and similar letters as those that Windows gives a program of an older code page;
// some programs there upper-case every name.
func nearestASCII(text string) string {
	fitted := strings.Map(func(r rune) rune {
		if like, found := toASCII[r]; found {
			return like
		}
		return r
	}, text)
	return strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII {
			return -1
		}
		return r
	}, norm.NFKD.String(fitted))
}

// Apply answers the environment that a container starts with. Gone are the variables that are, or that a program could
// take for, one of the plan's names; unless the mode is open, those that are one of the client's own set, also if they came
// after the plan, and those whose name can be no variable's; and every spelling of the mode's own, which the plan sets anew.
// The environment given stays as it is.
func Apply(plan Plan, env map[string]string) map[string]string {
	gone, closed := names{}, !plan.Resolution.Mode.Open()
	for _, key := range slices.Concat(modeVariables, plan.StripKeys) {
		if name := normalise(key); name != "" {
			gone[name] = true
		}
	}
	if closed {
		blocked := plan.blocked
		if blocked == nil {
			blocked = listed(Agents, nil)
		}
		maps.Copy(gone, blocked)
	}
	result := map[string]string{}
	for key, value := range env {
		if !slices.Contains(plan.StripKeys, key) && !gone.holds(key) && (!closed || canBeVariable(key)) {
			result[key] = value
		}
	}
	maps.Copy(result, plan.SetEnv)
	return result
}

// canBeVariable says whether a name means one variable to every program: joined to NAME=value, a name with an equals
// sign is another variable, and one with a NUL or a line's end begins a new one.
func canBeVariable(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r == '=' || unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp)
	})
}
