package bpf

// The objects are built with clang 19 and committed; `go generate ./bpf` makes
// them again, byte for byte (TestGenerated). Nothing of the building machine's
// headers goes in: src/kernel.h has what we need.

//go:generate -command compile go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -nostdinc -fno-strict-aliasing -Wall -Wextra -Werror -ffile-prefix-map=$PWD=."
//go:generate compile -type tmb_stage -type tmb_event -type tmb_event_kind -type tmb_scope -type tmb_service_flags -type tmb_ipcache_flags -type tmb_endpoint_flags -type tmb_subject_flags -type tmb_direction -type tmb_verdict -type tmb_flow_flags -type tmb_config_flags -type tmb_device -type tmb_service -type tmb_tier -type tmb_group -type tmb_slot rows src/rows.c
//go:generate compile -no-global-types sock src/sock.c
//go:generate compile -no-global-types sockRetval src/sock_retval.c
//go:generate compile -no-global-types tunnel src/tunnel.c
//go:generate compile -no-global-types pod src/pod.c
//go:generate compile -no-global-types host src/host.c
//go:generate compile -no-global-types reset src/reset.c
//go:generate compile -no-global-types xdp src/xdp.c
//go:generate compile -no-global-types -output-suffix _test pick src/pick_test.c
//go:generate compile -no-global-types -output-suffix _test maglev src/maglev_test.c
//go:generate compile -no-global-types -output-suffix _test policy src/policy_test.c
