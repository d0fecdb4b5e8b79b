package billing

import (
	"fmt"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// Mode is who pays for a workspace's model calls, in the text of the database, of logs and of metrics. The zero Mode is no
// mode: treat it, like every text but BYOK and Disabled, as PlatformManaged.
type Mode string

// The modes.
const (
	PlatformManaged Mode = "platform_managed" // the platform pays; vendor keys are stripped
	BYOK            Mode = "byok"             // the tenant pays, on its own vendor key
	Disabled        Mode = "disabled"         // the platform bills nothing and strips nothing
)

// Source is the rule that decided.
type Source string

// The sources.
const (
	FromOverride     Source = "workspace_override"
	FromOrgDefault   Source = "org_default"
	ConstantFallback Source = "constant_fallback" // neither could be used: the mode is PlatformManaged
)

// Verdict is whether a secret may be stored under a name.
type Verdict string

// The verdicts.
const (
	Allowed                Verdict = "allowed"
	BlockedPlatformManaged Verdict = "blocked_platform_managed" // a vendor key, and the mode is not known to be open
	BlockedReserved        Verdict = "blocked_reserved"         // the name belongs to the platform, in every mode
)

var (
	modes    = map[pb.BillingMode]Mode{1: PlatformManaged, 2: BYOK, 3: Disabled}
	sources  = map[pb.BillingModeSource]Source{1: FromOverride, 2: FromOrgDefault, 3: ConstantFallback}
	verdicts = map[pb.SecretVerdict]Verdict{1: Allowed, 2: BlockedPlatformManaged, 3: BlockedReserved}
)

// ParseMode returns the mode with exactly this text, as a person or a configuration gives it.
func ParseMode(text string) (Mode, error) {
	if mode := Mode(text); mode.Enum() != pb.BillingMode_BILLING_MODE_UNSPECIFIED {
		return mode, nil
	}
	return "", fmt.Errorf("unknown billing mode %q (allowed: %s, %s, %s)", text, PlatformManaged, BYOK, Disabled)
}

// ModeOf returns the mode of the contract's enum: PlatformManaged for a number that this release does not know.
func ModeOf(enum pb.BillingMode) Mode {
	if mode, known := modes[enum]; known {
		return mode
	}
	return PlatformManaged
}

// Enum returns the mode in the contract's enum: UNSPECIFIED, which no server sets, for another text.
func (m Mode) Enum() pb.BillingMode {
	for enum, mode := range modes {
		if mode == m {
			return enum
		}
	}
	return pb.BillingMode_BILLING_MODE_UNSPECIFIED
}

func (s Source) enum() pb.BillingModeSource {
	for enum, source := range sources {
		if source == s {
			return enum
		}
	}
	return pb.BillingModeSource_BILLING_MODE_SOURCE_UNSPECIFIED
}

// String returns the text of the mode.
func (m Mode) String() string { return string(m) }

// Open says whether the mode leaves vendor keys alone.
func (m Mode) Open() bool { return m == BYOK || m == Disabled }
