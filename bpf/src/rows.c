// SPDX-License-Identifier: Apache-2.0
/* No program: the maps, and the types of their rows, for the loader. */
#include "kernel.h"
#include "tables.h"

char tmb_license[] SEC("license") = "Apache-2.0";
