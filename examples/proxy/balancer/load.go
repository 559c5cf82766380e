package main

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// A fault is a mistake in a configuration file, and where it stands.
type fault struct {
	line, column int // from 1; 0 is unknown
	text         string
}

func (f *fault) Error() string {
	if f.line == 0 {
		return f.text
	}
	return fmt.Sprintf("%d:%d: %s", f.line, f.column, f.text)
}

// load reads the file at path and checks it. Its error has a line "path:line:column: what" for each
// mistake.
func load(path string) (*config, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	cfg, faults := parse(src, filepath.Dir(path))
	if len(faults) == 0 {
		return cfg, nil
	}
	lines := make([]string, len(faults))
	for i, f := range faults {
		lines[i] = path + ":" + f.Error()
	}
	return nil, errors.New(strings.Join(lines, "\n"))
}

// parse makes a config of src, whose paths are relative to folder, or returns the mistakes in it.
func parse(src []byte, folder string) (cfg *config, faults []*fault) {
	defer func() {
		if v := recover(); v != nil { // a file must not end a proxy that runs
			cfg, faults = nil, []*fault{{text: fmt.Sprintf("the YAML package cannot read this: %v", v)}}
		}
	}()
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, []*fault{decodeFault(err)}
	}
	for i, d := range file.Docs {
		if i > 0 && d.Body != nil {
			return nil, []*fault{faultAt(d.Body, "a second document is not read")}
		}
	}
	if cfg, faults = decode(src); len(faults) == 0 {
		cfg.fill()
		c := checker{cfg: cfg, folder: folder, file: file}
		c.check()
		faults = c.faults
	}
	slices.SortStableFunc(faults, func(a, b *fault) int { return cmp.Or(a.line-b.line, a.column-b.column) })
	return cfg, faults
}

// decode takes the keys and values out of src. The YAML package tells the first mistake, so behind
// each one it is asked again without what is wrong there.
func decode(src []byte) (cfg *config, faults []*fault) {
	cfg = new(config)
	err := yaml.UnmarshalWithOptions(src, cfg, yaml.Strict())
	file, _ := parser.ParseBytes(src, 0) // to be cut; parse has seen that it is YAML
	for err != nil && len(faults) < maxFaults {
		f := decodeFault(err)
		faults = append(faults, f)
		if len(file.Docs) == 0 || !cut(file.Docs[0].Body, f) {
			break
		}
		err = yaml.NodeToValue(file.Docs[0].Body, new(config), yaml.Strict())
	}
	return cfg, faults
}

// maxFaults is how many mistakes of decode one looks at.
const maxFaults = 100

// cut removes the key at f's place from what is in n, or has null for the value there. It reports
// whether there is one.
func cut(n ast.Node, f *fault) bool {
	stands := func(n ast.Node) bool {
		t := n.GetToken()
		return t != nil && t.Position.Line == f.line && t.Position.Column == f.column
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		for i, pair := range n.Values {
			if stands(pair.Key) {
				n.Values = slices.Delete(n.Values, i, i+1)
				return true
			}
			if cut(pair.Value, f) {
				return true
			}
			if _, null := pair.Value.(*ast.NullNode); stands(pair.Value) && !null {
				pair.Value = ast.Null(pair.Value.GetToken())
				return true
			}
		}
	case *ast.SequenceNode:
		for i, v := range n.Values {
			if cut(v, f) {
				return true
			}
			if _, null := v.(*ast.NullNode); stands(v) && !null {
				n.Values[i] = ast.Null(v.GetToken())
				return true
			}
		}
	case *ast.AnchorNode:
		return cut(n.Value, f)
	}
	return false
}

// decodeFault says in the file's terms what the YAML package says in those of Go.
func decodeFault(err error) *fault {
	if own, ok := errors.AsType[*fault](err); ok {
		return own
	}
	known, ok := errors.AsType[yaml.Error](err)
	if !ok {
		return &fault{text: err.Error()}
	}
	f := &fault{text: known.GetMessage()}
	if t := known.GetToken(); t != nil {
		f.line, f.column = t.Position.Line, t.Position.Column
	}
	if wrong, ok := errors.AsType[*yaml.TypeError](err); ok {
		f.text = "this has to be " + kindOf(wrong.DstType.Kind())
	}
	if wrong, ok := errors.AsType[*yaml.UnexpectedNodeTypeError](err); ok && wrong.Expected == ast.SequenceType {
		f.text = "this has to be " + kindOf(reflect.Slice)
	} else if ok {
		f.text = "this has to be " + kindOf(reflect.Struct)
	}
	return f
}

func kindOf(kind reflect.Kind) string {
	switch kind {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Slice:
		return "a list"
	}
	return "a block of keys and values"
}

// scalar is the text of a node, if it is a single value.
func scalar(n ast.Node, want string) (string, error) {
	if s, ok := n.(ast.ScalarNode); ok {
		return s.GetToken().Value, nil
	}
	return "", faultAt(n, want)
}

func faultAt(n ast.Node, text string) *fault {
	p := n.GetToken().Position
	return &fault{p.Line, p.Column, text}
}

func (d *duration) UnmarshalYAML(n ast.Node) error {
	const want = `this has to be a time such as "1.5s" or "2m"`
	s, err := scalar(n, want)
	if err != nil {
		return err
	}
	if d.Duration, err = time.ParseDuration(s); err != nil {
		return faultAt(n, want)
	}
	if d.Duration > maxTime || d.Duration < -maxTime {
		return faultAt(n, fmt.Sprintf("this time is longer than %v", maxTime))
	}
	d.given = true
	return nil
}

func (c *count) UnmarshalYAML(n ast.Node) error {
	number, ok := n.(*ast.IntegerNode)
	if !ok {
		return faultAt(n, fmt.Sprintf("this has to be a whole number, %d at most", maxCount))
	}
	switch v := number.Value.(type) {
	case int64:
		c.n = int(min(max(v, -1), maxCount+1)) // what is out of range is said later
	case uint64:
		c.n = int(min(v, maxCount+1))
	}
	c.given = true
	return nil
}

func (p *prefix) UnmarshalYAML(n ast.Node) error {
	const want = `this has to be an address or a prefix such as "10.0.0.0/8"`
	s, err := scalar(n, want)
	if err != nil {
		return err
	}
	if a, err := netip.ParseAddr(s); err == nil {
		p.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	if p.Prefix, err = netip.ParsePrefix(s); err != nil {
		return faultAt(n, want)
	}
	return nil
}

func (p *payload) UnmarshalYAML(n ast.Node) error {
	s, err := scalar(n, "this has to be a text")
	if err != nil {
		return err
	}
	digits, ok := strings.CutPrefix(s, "hex:")
	if !ok {
		*p = payload(s)
		return nil
	}
	b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
	if err != nil {
		return faultAt(n, `behind "hex:" there have to be pairs of hexadecimal digits`)
	}
	*p = payload(b)
	return nil
}

// A place is a path into the file: keys, and numbers of list items.
type place []any

func (p place) at(steps ...any) place { return append(slices.Clip(p), steps...) }

// String is the place as people write it: pools.web.upstreams[0].addr.
func (p place) String() string {
	return strings.TrimPrefix(p.path(func(key string) string { return key }), ".")
}

func (p place) path(quote func(string) string) string {
	var s strings.Builder
	for _, step := range p {
		switch step := step.(type) {
		case int:
			fmt.Fprintf(&s, "[%d]", step)
		case string:
			s.WriteString("." + quote(step))
		}
	}
	return s.String()
}

// find returns the line and column of p in file, or of the nearest thing around it that is there.
func (p place) find(file *ast.File) (line, column int) {
	for ; len(p) > 0; p = p[:len(p)-1] {
		path, err := yaml.PathString("$" + p.path(func(key string) string {
			if strings.ContainsAny(key, ".[]*$'\" ") {
				return "'" + strings.ReplaceAll(key, "'", `\'`) + "'"
			}
			return key
		}))
		if err != nil {
			continue
		}
		if n, err := path.FilterFile(file); err == nil && n.GetToken() != nil {
			at := n.GetToken().Position
			return at.Line, at.Column
		}
	}
	return 1, 1
}

func quoted(names []string) string {
	for i, n := range names {
		names[i] = strconv.Quote(n)
	}
	return strings.Join(names, ", ")
}
