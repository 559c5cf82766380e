//go:build linux

package sys

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryLimitIsTheLeastOfAll(t *testing.T) {
	const meminfo = "MemFree:  1 kB\nMemTotal:       16384 kB\n" // 16 MiB
	for name, tc := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"nothing is known":  {nil, math.MaxInt64},
		"the machine alone": {map[string]string{"proc/meminfo": meminfo}, 16 << 20},
		"no group":          {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n"}, 16 << 20},
		"version 2": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "5000\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 5000},
		"a parent's": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "4000\n"}, 4000},
		"throttled before": {map[string]string{"proc/self/cgroup": "0::/a\n",
			"sys/fs/cgroup/a/memory.max": "5000\n", "sys/fs/cgroup/a/memory.high": "3000\n"}, 3000},
		"a container's own": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "6000\n"}, 6000},
		"a container with the machine's path": {map[string]string{"proc/meminfo": meminfo,
			"proc/self/cgroup": "4:cpu,memory:/docker/0123\n3:cpuset:/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n"}, 7000},
		"version 1": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "9:memory:/a\n0::/\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "8000\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 8000},
		"version 1 without": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "9:memory:/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 16 << 20},
		"more than the machine has": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "999999999999\n"}, 16 << 20},
		"a group outside": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/../../a\n",
			"sys/fs/cgroup/a/memory.max": "900\n", "sys/memory.max": "1\n", "memory.max": "1\n"}, 900},
		"nonsense": {map[string]string{"proc/meminfo": "MemTotal: many kB\nMemTotal:\n", "proc/self/cgroup": "0:\n\n0::/\nx",
			"sys/fs/cgroup/memory.max": "-5\n", "sys/fs/cgroup/memory.high": "0\n"}, math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range tc.files {
				file = filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := MemoryLimit(root); got != tc.want {
				t.Errorf("the limit is %d, want %d", got, tc.want)
			}
		})
	}
	if n := MemoryLimit("/"); n < 16<<20 || n == math.MaxInt64 {
		t.Errorf("this process may use %d bytes", n)
	}
	if n := MaxDescriptors(); n < 10 {
		t.Errorf("this process may have %d descriptors", n)
	}
}
