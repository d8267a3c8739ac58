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

	Subject     = rowsTmbSubject
	PolicyKey   = rowsTmbPolicyKey
	Policy      = rowsTmbPolicy
	Stage       = rowsTmbStage
	Class       = rowsTmbClass
	MaglevKey   = rowsTmbMaglevKey
	Maglev      = rowsTmbMaglev
	RangeKey    = rowsTmbRangeKey
	Range       = rowsTmbRange
	Config      = rowsTmbConfig
	FlowKey     = rowsTmbFlowKey
	Flow        = rowsTmbFlow
	FragKey     = rowsTmbFragKey
	Frag        = rowsTmbFrag
	AffinityKey = rowsTmbAffinityKey
	Affinity    = rowsTmbAffinity
	Event       = rowsTmbEvent
)

// Limits of a service row, the same as in src/maps.h (a test compares).
const (
	MaxTiers  = len(Service{}.Tiers)
	MaxGroups = len(Service{}.Groups)
	MaxWalk   = 64 // slots tried in one group
)

// Numbers that rows hold, from src/maps.h.
const (
	ScopeInside  = uint8(rowsTmbScopeTMB_INSIDE)
	ScopeOutside = uint8(rowsTmbScopeTMB_OUTSIDE)

	ServiceLocal      = uint8(rowsTmbServiceFlagsTMB_SVC_LOCAL)
	ServiceKeepSource = uint8(rowsTmbServiceFlagsTMB_SVC_KEEP_SOURCE)
	ServiceRanges     = uint8(rowsTmbServiceFlagsTMB_SVC_RANGES)
	ServiceDrained    = uint8(rowsTmbServiceFlagsTMB_SVC_DRAINED)

	IPTunnelAddress = uint16(rowsTmbIpcacheFlagsTMB_IP_TUNNEL_ADDRESS)
	IPEncrypted     = uint16(rowsTmbIpcacheFlagsTMB_IP_ENCRYPTED)
	IPHere          = uint16(rowsTmbIpcacheFlagsTMB_IP_HERE)
	IPAcross        = uint16(rowsTmbIpcacheFlagsTMB_IP_ACROSS)

	EndpointClosed = uint32(rowsTmbEndpointFlagsTMB_EP_CLOSED)

	IsolatedIn    = uint32(rowsTmbSubjectFlagsTMB_ISOLATED_IN)
	IsolatedOut   = uint32(rowsTmbSubjectFlagsTMB_ISOLATED_OUT)
	ClassesIn     = uint32(rowsTmbSubjectFlagsTMB_CLASSES_IN)
	ClassesOut    = uint32(rowsTmbSubjectFlagsTMB_CLASSES_OUT)
	SubjectClosed = uint32(rowsTmbSubjectFlagsTMB_SUBJECT_CLOSED)

	FlowFromA    = uint32(rowsTmbFlowFlagsTMB_FLOW_FROM_A)
	FlowAnswered = uint32(rowsTmbFlowFlagsTMB_FLOW_ANSWERED)
	FlowFinA     = uint32(rowsTmbFlowFlagsTMB_FLOW_FIN_A)
	FlowFinB     = uint32(rowsTmbFlowFlagsTMB_FLOW_FIN_B)
	FlowReset    = uint32(rowsTmbFlowFlagsTMB_FLOW_RESET)
	FlowService  = uint32(rowsTmbFlowFlagsTMB_FLOW_SERVICE)
	FlowReply    = uint32(rowsTmbFlowFlagsTMB_FLOW_REPLY)
	FlowToSrc    = uint32(rowsTmbFlowFlagsTMB_FLOW_TO_SRC)
	FlowToDst    = uint32(rowsTmbFlowFlagsTMB_FLOW_TO_DST)
	FlowOutside  = uint32(rowsTmbFlowFlagsTMB_FLOW_OUTSIDE)
	FlowHairpin  = uint32(rowsTmbFlowFlagsTMB_FLOW_HAIRPIN)
	FlowGone     = uint32(rowsTmbFlowFlagsTMB_FLOW_GONE)

	EncryptAll = uint32(rowsTmbConfigFlagsTMB_ENCRYPT_ALL)
	Masquerade = uint32(rowsTmbConfigFlagsTMB_MASQUERADE)
	Chained    = uint32(rowsTmbConfigFlagsTMB_CHAINED)
	Gateway    = uint32(rowsTmbConfigFlagsTMB_GATEWAY)

	EventDrop = uint8(rowsTmbEventKindTMB_EVENT_DROP)
	EventNew  = uint8(rowsTmbEventKindTMB_EVENT_NEW)
	EventCut  = uint8(rowsTmbEventKindTMB_EVENT_CUT)

	// FlowNew counts what EventNew tells.
	FlowNew = Reason(rowsTmbReasonTMB_FLOW_NEW)

	// PolicyPeerAny and PolicyPeerClass are TMB_PEER_ANY and TMB_PEER_CLASS.
	PolicyPeerAny   = ^uint64(0)
	PolicyPeerClass = uint64(1) << 63

	// PolicyBitsAny is the length of a policy key for any protocol,
	// PolicyBitsProto for any port of one; a port's own bits come on top.
	PolicyBitsAny   = 136
	PolicyBitsProto = 144

	// MaglevChunk is how many buckets one row has.
	MaglevChunk = len(Maglev{}.Entry)
)
