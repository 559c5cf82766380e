//go:build linux

package test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// permissions are what a node of the cluster "proof" needs, with sessions and the class "log", as
// the documentation lists them.
func permissions() (publish, subscribe []string) {
	publish = []string{"tcpio.proof.>"}
	for _, stream := range []string{"tcpio+proof+=sessions", "tcpio+proof+log"} {
		publish = append(publish,
			"$JS.API.STREAM.CREATE."+stream, "$JS.API.STREAM.UPDATE."+stream, "$JS.API.STREAM.INFO."+stream,
			"$JS.API.DIRECT.GET."+stream, "$JS.API.DIRECT.GET."+stream+".>")
	}
	publish = append(publish, "$JS.API.STREAM.MSG.GET.tcpio+proof+log")
	return publish, []string{"tcpio.proof.>"}
}

// An external nats-server with TLS, where an operator's JWT says which accounts there are, and a
// user's what it may do: a node works with that and with no more.
func TestExternalServerWithTLSAndJWT(t *testing.T) {
	t.Parallel()
	pair := func(make func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		k, err := make()
		must(t, err)
		public, err := k.PublicKey()
		must(t, err)
		return k, public
	}
	operator, operatorID := pair(nkeys.CreateOperator)
	system, systemID := pair(nkeys.CreateAccount)
	account, accountID := pair(nkeys.CreateAccount)
	encode := func(c jwt.Claims, by nkeys.KeyPair) string {
		text, err := c.Encode(by)
		must(t, err)
		return text
	}
	oc := jwt.NewOperatorClaims(operatorID)
	oc.SystemAccount = systemID
	sc, ac := jwt.NewAccountClaims(systemID), jwt.NewAccountClaims(accountID)
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: 1 << 30, MemoryStorage: 1 << 30, Streams: 10, Consumer: 10}
	_ = system
	// user makes the credentials of a user, in a file.
	user := func(name string, publish, subscribe []string) string {
		key, id := pair(nkeys.CreateUser)
		uc := jwt.NewUserClaims(id)
		uc.Name = name
		uc.Permissions.Pub.Allow, uc.Permissions.Sub.Allow = publish, subscribe
		seed, err := key.Seed()
		must(t, err)
		creds, err := jwt.FormatUserConfig(encode(uc, account), seed)
		must(t, err)
		file := filepath.Join(t.TempDir(), name+".creds")
		must(t, os.WriteFile(file, creds, 0o600))
		return file
	}
	cert := writePEM(t)
	addr := testnet.FreeAddr(t)
	conf := writeConfig(t, fmt.Sprintf(`
listen: %q
operator: %q
resolver: MEMORY
resolver_preload { %s: %q, %s: %q }
jetstream { store_dir: %q }
tls { cert_file: %q, key_file: %q }
`, addr, encode(oc, operator), systemID, encode(sc, operator), accountID, encode(ac, operator), t.TempDir(), cert, cert))
	server := proc.StartCommand(t, exec.Command(natsServer(t), "-c", conf))
	testnet.WaitFor(t, "the NATS server is ready", func() bool {
		return strings.Contains(strings.Join(server.Lines(), "\n"), "Server is ready")
	})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: testnet.ServerTLS().Certificates[0].Certificate[0]}), 0o600))
	url := "tls://" + addr
	publish, subscribe := permissions()
	credentials := user("node", publish, subscribe)

	env := []string{"NATS=" + url, "CA=" + ca, "CREDS=" + credentials}
	a, b := startNode(t, "a", env...), startNode(t, "b", env...)
	awaitMembers(t, a, b)
	load(a, b)
	fence := a.awaitClaim("ann", 0)
	b.awaitClaim("ann", fence)
	proc.Eventually(t, "both have published", func() bool { return a.report().Recorded > 50 && b.report().Published > 50 })
	settle(t, a, b)
	check(t, a, b)

	ctx := testnet.Context(t)
	connect := func(opts ...nats.Option) (*nats.Conn, error) {
		nc, err := nats.Connect(url, append(cluster.NATSOptions(), opts...)...)
		if err == nil {
			t.Cleanup(nc.Close)
		}
		return nc, err
	}
	// Without credentials, and without trust in the server, there is no connection.
	if _, err := connect(nats.RootCAs(ca)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("without credentials: %v", err)
	}
	if _, err := connect(nats.UserCredentials(credentials)); err == nil {
		t.Error("a server whose certificate nobody has signed was trusted")
	}
	// The same user is no node of another cluster, and one without JetStream cannot claim.
	nc, err := connect(nats.RootCAs(ca), nats.UserCredentials(credentials))
	must(t, err)
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if n, err := cluster.Open(short, nc, &cluster.Options{Name: "another"}); err == nil {
		n.Close()
		t.Error("a node of another cluster, without the permission")
	}
	nc, err = connect(nats.RootCAs(ca), nats.UserCredentials(user("plain", subscribe, subscribe)))
	must(t, err)
	n, err := cluster.Open(ctx, nc, &cluster.Options{Name: "proof", Heartbeat: beat})
	must(t, err)
	defer n.Close()
	if _, err := n.Class(ctx, "log", cluster.History{}); !errors.Is(err, cluster.ErrNoQuorum) {
		t.Errorf("Class without the permission: %v", err)
	}
}
