package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	clusterws "github.com/rabbit-backend/tcpio/cluster/ws"
	"github.com/rabbit-backend/tcpio/websocket"
)

// A variant is a server as a benchmark sees it: connections come to addr, say which topic they
// want, and get what is published there.
type variant struct {
	addr    string
	publish func(topic string, p []byte) error
	lost    func() uint64 // what it says that it has lost
	node    *cluster.Node // of cluster's variants
	conns   func() []*tcpio.Conn
}

var variants = map[string]func(nc *nats.Conn) (*variant, error){
	"group": newGroup, "groups": newGroup, "cluster": newCluster, "cluster-ws": newClusterWS, "net": newNet, "centrifuge": newCentrifuge,
}

// topicOf reads the line by which a client says what it wants.
func topicOf(c *tcpio.Conn) string {
	for line, err := range c.Frames(bufio.ScanLines) {
		if err != nil {
			c.Close()
			return ""
		}
		return string(line)
	}
	return ""
}

// serve listens, and calls join for each connection that names a topic.
func serve(join func(c *tcpio.Conn, topic string)) (*tcpio.Listener, error) {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
	if err != nil {
		return nil, err
	}
	go l.Serve(context.Background()) // until the process ends
	go func() {
		for ev := range l.Events() {
			switch ev := ev.(type) {
			case tcpio.Readable:
				if topic := topicOf(ev.Conn); topic != "" {
					join(ev.Conn, topic)
				}
			}
		}
	}()
	return l, nil
}

// newGroup is one process without a cluster, or one of several that know nothing of each other.
func newGroup(*nats.Conn) (*variant, error) {
	var mu sync.Mutex
	groups := make(map[string]*tcpio.Group)
	group := func(topic string) *tcpio.Group {
		mu.Lock()
		defer mu.Unlock()
		if groups[topic] == nil {
			groups[topic] = new(tcpio.Group)
		}
		return groups[topic]
	}
	l, err := serve(func(c *tcpio.Conn, topic string) { group(topic).Join(c) })
	if err != nil {
		return nil, err
	}
	return &variant{
		addr:    l.Addr().String(),
		publish: func(topic string, p []byte) error { _, err := group(topic).Write(p); return err },
		lost: func() (n uint64) {
			mu.Lock()
			defer mu.Unlock()
			for _, g := range groups {
				n += g.Skipped()
			}
			return n
		},
	}, nil
}

func openNode(nc *nats.Conn) (*cluster.Node, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return cluster.Open(ctx, nc, &cluster.Options{Name: "bench", Sessions: &cluster.Sessions{}})
}

func clusterVariant(n *cluster.Node, addr string) *variant {
	return &variant{
		addr: addr, node: n,
		publish: func(topic string, p []byte) error { return n.Topic(topic).Publish(p) },
		lost:    func() uint64 { s := n.Stats(); return uint64(s.Lost + s.Skipped) },
	}
}

func newCluster(nc *nats.Conn) (*variant, error) {
	n, err := openNode(nc)
	if err != nil {
		return nil, err
	}
	l, err := serve(func(c *tcpio.Conn, topic string) {
		if err := n.Topic(topic).Join(c, &cluster.Member{ID: fmt.Sprint("user ", c.ID())}); err != nil {
			c.Close()
		}
	})
	if err != nil {
		return nil, err
	}
	v := clusterVariant(n, l.Addr().String())
	v.conns = func() (all []*tcpio.Conn) {
		for c := range l.Conns() {
			all = append(all, c)
		}
		return all
	}
	return v, nil
}

// newClusterWS has clients that come by WebSocket, as those of centrifuge do.
func newClusterWS(nc *nats.Conn) (*variant, error) {
	n, err := openNode(nc)
	if err != nil {
		return nil, err
	}
	asText := new(clusterws.Format)
	s, err := websocket.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, &websocket.Options{})
	if err != nil {
		return nil, err
	}
	go s.Serve(context.Background()) // until the process ends
	go func() {
		for ev := range s.Events() {
			if ev, ok := ev.(websocket.Text); ok {
				id := &cluster.Member{ID: fmt.Sprint("user ", ev.Conn.Underlying().ID())}
				if asText.Join(n.Topic(strings.TrimSpace(string(ev.Data))), ev.Conn, id) != nil {
					_ = ev.Conn.Abort()
				}
			}
		}
	}()
	return clusterVariant(n, s.Listener().Addr().String()), nil
}

// newNet is what one writes without tcpio: a goroutine and a NATS subscription for each client.
func newNet(nc *nats.Conn) (*variant, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewScanner(c)
				for in.Scan() {
					sub, err := nc.Subscribe("bench."+in.Text(), func(m *nats.Msg) { _, _ = c.Write(m.Data) })
					if err != nil {
						return
					}
					defer func() { _ = sub.Unsubscribe() }()
				}
			}()
		}
	}()
	return &variant{
		addr:    ln.Addr().String(),
		publish: func(topic string, p []byte) error { return nc.Publish("bench."+topic, p) },
		lost:    func() uint64 { return 0 },
	}, nil
}

// newCentrifuge is Centrifugo's library. Its NATS broker is not part of the library; this one does
// what Centrifugo's does: a subject for each channel, and nothing else.
func newCentrifuge(nc *nats.Conn) (*variant, error) {
	node, err := centrifuge.New(centrifuge.Config{LogLevel: centrifuge.LogLevelError})
	if err != nil {
		return nil, err
	}
	node.SetBroker(&natsBroker{nc: nc, subs: make(map[string]*nats.Subscription)})
	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{Credentials: &centrifuge.Credentials{UserID: "user"}}, nil
	})
	node.OnConnect(func(c *centrifuge.Client) {
		c.OnSubscribe(func(_ centrifuge.SubscribeEvent, reply centrifuge.SubscribeCallback) {
			reply(centrifuge.SubscribeReply{Options: centrifuge.SubscribeOptions{EmitPresence: true}}, nil)
		})
	})
	if err := node.Run(); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go http.Serve(ln, centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{})) // until the process ends
	return &variant{
		addr: ln.Addr().String(),
		publish: func(topic string, p []byte) error {
			data, err := json.Marshal(string(p))
			if err == nil {
				_, err = node.Publish(topic, data)
			}
			return err
		},
		lost: func() uint64 { return 0 },
	}, nil
}

type natsBroker struct {
	nc *nats.Conn
	h  centrifuge.BrokerEventHandler

	mu   sync.Mutex
	subs map[string]*nats.Subscription
}

func (b *natsBroker) RegisterBrokerEventHandler(h centrifuge.BrokerEventHandler) error {
	b.h = h
	return nil
}

func (b *natsBroker) Subscribe(channels ...string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ch := range channels {
		sub, err := b.nc.Subscribe("centrifuge."+ch, func(m *nats.Msg) {
			_ = b.h.HandlePublication(ch, &centrifuge.Publication{Data: m.Data}, centrifuge.StreamPosition{}, false, nil)
		})
		if err != nil {
			return err
		}
		b.subs[ch] = sub
	}
	return nil
}

func (b *natsBroker) Unsubscribe(channels ...string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ch := range channels {
		if sub := b.subs[ch]; sub != nil {
			delete(b.subs, ch)
			_ = sub.Unsubscribe()
		}
	}
	return nil
}

func (b *natsBroker) Publish(ch string, data []byte, _ centrifuge.PublishOptions) (centrifuge.PublishResult, error) {
	return centrifuge.PublishResult{}, b.nc.Publish("centrifuge."+ch, data)
}

func (b *natsBroker) PublishJoin(string, *centrifuge.ClientInfo) error  { return nil }
func (b *natsBroker) PublishLeave(string, *centrifuge.ClientInfo) error { return nil }

func (b *natsBroker) History(string, centrifuge.HistoryOptions) ([]*centrifuge.Publication, centrifuge.StreamPosition, error) {
	return nil, centrifuge.StreamPosition{}, nil
}

func (b *natsBroker) RemoveHistory(string) error { return nil }
