package tcpio_test

import (
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fileOrder is the package's files from the bottom to the top. A file uses what is defined in
// itself and in the files before it.
var fileOrder = strings.Fields(`
	errors.go events.go actor.go options.go defaults.go splitters.go stats.go
	guard.go hello.go
	epoll_linux.go dials.go shard.go states.go waits.go conn.go relayside.go log.go
	ends.go route.go announce.go limits.go mailbox.go budget.go socket.go tlslink.go tls.go read.go write.go
	close.go handshake.go preface.go settle.go
	attach.go group.go groups.go frames.go starttls.go netconn.go rawconn.go copy.go relaybulk.go relay.go
	callback.go backlog.go tcpio.go count.go context.go loop.go receive.go register.go dialanswer.go dialplan.go dialing.go accept.go dispatch.go serve.go
	dialasync.go dial.go netlistener.go
`)

// upward has the exceptions: behind a file's name those that come after it, and that it uses all
// the same. The list only ever gets shorter.
const upward = `
	events.go: conn.go          # an event has its connection
	options.go: conn.go         # a hook gets one
	shard.go: conn.go           # what waits in a loop are connections
	conn.go: route.go           # a connection has its stream
	conn.go: settle.go          # unlock does what must wait until mu is free
	tcpio.go: loop.go           # a listener has its loops
`

// To see it fail: use Listener in conn.go.
func TestOrderOfFiles(t *testing.T) {
	place := map[string]int{}
	for i, name := range fileOrder {
		place[name] = i
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
	excepted := map[[2]string]bool{}
	for line := range strings.Lines(upward) {
		line, _, _ = strings.Cut(line, "#")
		from, names, _ := strings.Cut(line, ":")
		for _, name := range strings.Fields(names) {
			excepted[[2]string{strings.TrimSpace(from), name}] = true
		}
	}
	arrows := fileArrows(t)
	up, mutual := 0, 0
	for _, a := range slices.SortedFunc(maps.Keys(arrows), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		from, to := a[0], a[1]
		for _, name := range a {
			if _, ok := place[name]; !ok {
				t.Fatalf("%s has no place in fileOrder: put it behind the files that it uses", name)
			}
		}
		if from < to && arrows[[2]string{to, from}] != "" {
			mutual++
		}
		if place[from] > place[to] {
			continue
		}
		up++
		if !excepted[a] {
			t.Errorf("%s is below %s and uses its %s", from, to, arrows[a])
		}
		delete(excepted, a)
	}
	for a := range excepted {
		t.Errorf("%s no longer uses %s: delete the exception", a[0], a[1])
	}
	t.Logf("%d files, %d arrows, %d of them upward, %d mutual pairs", len(place), len(arrows), up, mutual)
}

// fileArrows returns which file uses a definition of which other, with an example of what it uses.
func fileArrows(t *testing.T) map[[2]string]string {
	dir, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range dir.GoFiles {
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	build.Default.CgoEnabled = false // the package net with cgo needs a whole C compiler to be read
	conf := types.Config{Importer: importer.ForCompiler(fset, "source", nil)}
	pkg, err := conf.Check(dir.ImportPath, fset, files, info)
	if err != nil {
		t.Fatal(err)
	}
	arrows := map[[2]string]string{}
	for id, obj := range info.Uses {
		if v, ok := obj.(*types.Var); ok {
			obj = v.Origin()
		}
		if obj.Pkg() != pkg || !obj.Pos().IsValid() {
			continue
		}
		from, to := filepath.Base(fset.Position(id.Pos()).Filename), filepath.Base(fset.Position(obj.Pos()).Filename)
		if from != to {
			a := [2]string{from, to}
			arrows[a] = max(arrows[a], obj.Name()) // any, but always the same
		}
	}
	return arrows
}

// A look at the interfaces is a conversation with the kernel by netlink that takes as long as there
// are interfaces. None is made by this package, so none is made under a lock.
func TestNobodyAsksNetlinkForTheNameOfAZone(t *testing.T) {
	files, err := filepath.Glob("*.go")
	inside, err2 := filepath.Glob("internal/*/*.go")
	if err != nil || err2 != nil || len(files) == 0 || len(inside) == 0 {
		t.Fatal(files, inside, err, err2)
	}
	fset := token.NewFileSet()
	for _, name := range append(files, inside...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if p, ok := s.X.(*ast.Ident); ok && p.Name == "net" && strings.HasPrefix(s.Sel.Name, "Interface") ||
				ok && p.Name == "unix" && s.Sel.Name == "AF_NETLINK" {
				t.Errorf("%s: %s.%s", fset.Position(n.Pos()), p.Name, s.Sel.Name)
			}
			return true
		})
	}
}
