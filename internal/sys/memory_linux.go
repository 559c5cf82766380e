package sys

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MemoryLimit returns how many bytes of memory the process may use: the least that its control
// groups and those above them allow, of both versions (memory.max and memory.high, or
// memory.limit_in_bytes; cgroups(7)), and the machine has. What cannot be read counts as no limit.
// The files are below root, which is / but in tests. It returns math.MaxInt64 if nothing is known.
func MemoryLimit(root string) int64 {
	limit := physicalMemory(root)
	groups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return limit
	}
	// A line is number:controllers:path; version 2 has neither of the first two.
	for line := range bytes.Lines(groups) {
		part := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(part) != 3 {
			continue
		}
		var base string
		var names []string
		switch {
		case part[0] == "0" && part[1] == "":
			base, names = "sys/fs/cgroup", []string{"memory.max", "memory.high"}
		case strings.Contains(","+part[1]+",", ",memory,"):
			base, names = "sys/fs/cgroup/memory", []string{"memory.limit_in_bytes"}
		default:
			continue
		}
		// A container may see its own group as the top, and the path as the machine has it: then none
		// of the path is there but its top, which is the right one.
		for group := path.Clean("/" + part[2]); ; group = path.Dir(group) {
			for _, name := range names {
				limit = min(limit, numberIn(filepath.Join(root, base, group, name)))
			}
			if group == "/" {
				break
			}
		}
	}
	return limit
}

// numberIn returns the positive number that the file holds, math.MaxInt64 if it holds none.
func numberIn(name string) int64 {
	if text, err := os.ReadFile(name); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 {
			return n
		}
	}
	return math.MaxInt64
}

// physicalMemory returns what the machine has.
func physicalMemory(root string) int64 {
	f, err := os.Open(filepath.Join(root, "proc/meminfo"))
	if err != nil {
		return math.MaxInt64
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if field := strings.Fields(s.Text()); len(field) == 3 && field[0] == "MemTotal:" && field[2] == "kB" {
			if n, err := strconv.ParseInt(field[1], 10, 64); err == nil && n > 0 && n <= math.MaxInt64>>10 {
				return n << 10
			}
		}
	}
	return math.MaxInt64
}

// MaxDescriptors returns how many descriptors the process may have (RLIMIT_NOFILE; the Go runtime
// has raised the soft limit), math.MaxInt if nothing is known.
func MaxDescriptors() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > math.MaxInt {
		return math.MaxInt
	}
	return int(limit.Cur)
}
