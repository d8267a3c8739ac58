// SPDX-License-Identifier: Apache-2.0
/* No program: the maps, and the types of their rows, for the loader. */
#include "kernel.h"
#include "tables.h"

/* Types that no map names and the Go needs all the same. */
#define enum_of(e) enum e *tmb_emit_##e
enum_of(tmb_event_kind);
enum_of(tmb_scope);
enum_of(tmb_service_flags);
enum_of(tmb_ipcache_flags);
enum_of(tmb_endpoint_flags);
enum_of(tmb_subject_flags);
enum_of(tmb_direction);
enum_of(tmb_verdict);
enum_of(tmb_flow_flags);
enum_of(tmb_config_flags);
enum_of(tmb_device);
struct tmb_event *tmb_emit_event;

char tmb_license[] SEC("license") = "Apache-2.0";
