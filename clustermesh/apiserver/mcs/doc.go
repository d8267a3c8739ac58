// Package mcs decides what the Multi-Cluster Services API (v1beta1) asks for:
//
//	Service + ServiceExport  → what the cluster's record says to the others (Record)
//	what all clusters export → one import (Resolve), with its conflicts
//	import + present objects → wanted ServiceImport, derived Service, EndpointSlices (Decide)
//	import + own export      → conditions of the ServiceExport (Conditions)
//
// Pure: no clients, no clock.
package mcs
