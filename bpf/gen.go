package bpf

// The objects are built with clang 19 and committed; `go generate ./bpf` makes
// them again, byte for byte (TestGenerated).

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-stem rows -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -fdebug-compilation-dir=. -ffile-prefix-map=$PWD=." -type tmb_service_key -type tmb_service -type tmb_slot_key -type tmb_slot -type tmb_node_key -type tmb_health -type tmb_addr -type tmb_ipcache -type tmb_prefix -type tmb_endpoint -type tmb_reverse_key -type tmb_reverse -type tmb_choice_key -type tmb_choice -type tmb_reason -type tmb_tier -type tmb_group rows src/rows.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -fdebug-compilation-dir=. -ffile-prefix-map=$PWD=." sock src/sock.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -fdebug-compilation-dir=. -ffile-prefix-map=$PWD=." sockRetval src/sock_retval.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -fdebug-compilation-dir=. -ffile-prefix-map=$PWD=." tunnel src/tunnel.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-suffix _test -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -fdebug-compilation-dir=. -ffile-prefix-map=$PWD=." pick src/pick_test.c
