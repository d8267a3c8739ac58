package bpf

// The rows, as bpf2go generated them from src/maps.h. See the package comment
// for byte order and for what belongs to which map. Pad must be zero.
type (
	Addr       = rowsTmbAddr
	ServiceKey = rowsTmbServiceKey
	Service    = rowsTmbService
	Tier       = rowsTmbTier
	Group      = rowsTmbGroup
	SlotKey    = rowsTmbSlotKey
	Slot       = rowsTmbSlot
	NodeKey    = rowsTmbNodeKey
	Health     = rowsTmbHealth
	IPCache    = rowsTmbIpcache
	Prefix     = rowsTmbPrefix
	Endpoint   = rowsTmbEndpoint
	ReverseKey = rowsTmbReverseKey
	Reverse    = rowsTmbReverse
	ChoiceKey  = rowsTmbChoiceKey
	Choice     = rowsTmbChoice
	Reason     = rowsTmbReason
)

// Limits of a service row, the same as in src/maps.h (a test compares).
const (
	MaxTiers  = len(Service{}.Tiers)
	MaxGroups = len(Service{}.Groups)
	MaxWalk   = 64 // slots tried in one group
)
