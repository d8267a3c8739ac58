// SPDX-License-Identifier: Apache-2.0
/* sock.c for kernels with bpf_set_retval (5.18): a service without backends
 * refuses with ECONNREFUSED. Optional: the loader falls back to sock.c. */
#include "kernel.h"

#define ECONNREFUSED 111
static long (*const bpf_set_retval)(__s32 retval) = (void *)187;
#define TMB_REFUSE() (bpf_set_retval(-ECONNREFUSED), 0)

#include "sock.c"
