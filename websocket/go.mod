module github.com/rabbit-backend/tcpio/websocket

go 1.26.0

require (
	github.com/coder/websocket v1.8.15
	github.com/gobwas/httphead v0.1.0
	github.com/gobwas/ws v1.5.0
	github.com/gorilla/websocket v1.5.3
	github.com/rabbit-backend/tcpio v0.0.0
	golang.org/x/sync v0.24.0
)

require (
	go.uber.org/goleak v1.3.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/rabbit-backend/tcpio => ../
