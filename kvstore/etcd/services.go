package etcd

import (
	"context"
	"path"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type (
	unaryHandler  = func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error)
	streamHandler = func(srv any, stream grpc.ServerStream) error
)

// services describes the etcd API as this server has it: every method of it,
// each refused unless it is named here. A method that a later etcd adds is
// refused too.
func (s *Server) services() []*grpc.ServiceDesc {
	unary := map[string]unaryHandler{
		pb.KV_Range_FullMethodName:           unaryOf(pb.KV_Range_FullMethodName, s.rangeCall),
		pb.Maintenance_Status_FullMethodName: unaryOf(pb.Maintenance_Status_FullMethodName, s.status),
	}
	streams := map[string]streamHandler{
		pb.KV_RangeStream_FullMethodName: s.rangeStream,
		pb.Watch_Watch_FullMethodName:    s.watchStream,
	}
	var out []*grpc.ServiceDesc
	for _, all := range []grpc.ServiceDesc{pb.KV_ServiceDesc, pb.Watch_ServiceDesc, pb.Lease_ServiceDesc, pb.Cluster_ServiceDesc, pb.Maintenance_ServiceDesc, pb.Auth_ServiceDesc} {
		desc := &grpc.ServiceDesc{ServiceName: all.ServiceName, HandlerType: (*any)(nil), Metadata: all.Metadata}
		for _, m := range all.Methods {
			full := "/" + all.ServiceName + "/" + m.MethodName
			handler := unary[full]
			if handler == nil {
				handler = s.refuseUnary(full)
			}
			desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: handler})
		}
		for _, m := range all.Streams {
			full := "/" + all.ServiceName + "/" + m.StreamName
			m.Handler = streams[full]
			if m.Handler == nil {
				m.Handler = s.refuseStream(full)
			}
			desc.Streams = append(desc.Streams, m)
		}
		out = append(out, desc)
	}
	return out
}

// unaryOf adapts a call whose answer may be a frame, which the generated code
// could not return.
func unaryOf[Req any](full string, call func(context.Context, *Req) (any, error)) unaryHandler {
	return func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		req := new(Req)
		if err := dec(req); err != nil {
			return nil, err
		}
		if interceptor == nil {
			return call(ctx, req)
		}
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: full}
		return interceptor(ctx, req, info, func(ctx context.Context, req any) (any, error) { return call(ctx, req.(*Req)) })
	}
}

func (s *Server) refuseUnary(full string) unaryHandler {
	return func(_ any, ctx context.Context, _ func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		return nil, s.refuse(ctx, full)
	}
}

func (s *Server) refuseStream(full string) streamHandler {
	return func(_ any, stream grpc.ServerStream) error { return s.refuse(stream.Context(), full) }
}

// refuse answers a call that this port does not have: Unimplemented, so that
// nobody takes it for a right that could be given.
func (s *Server) refuse(ctx context.Context, full string) error {
	_, c, err := s.admit(ctx)
	if err != nil {
		return err
	}
	c.refused()
	s.log.Warn("refused a call that this port does not have", "caller", c.name, "method", full)
	return status.Errorf(codes.Unimplemented, "%s: this port only reads (Range, RangeStream, Watch, Status): only the cluster's own mesh API server writes its records", path.Base(full))
}

// status is what `etcdctl endpoint status` asks for. It tells no sizes and no
// members: they are none of a peer's business.
func (s *Server) status(ctx context.Context, _ *pb.StatusRequest) (any, error) {
	if _, _, err := s.admit(ctx); err != nil {
		return nil, err
	}
	pos, err := s.now()
	if err != nil {
		return nil, err
	}
	return &pb.StatusResponse{
		Header:    &pb.ResponseHeader{ClusterId: pos.StoreID, MemberId: pos.StoreID, Revision: pos.Revision, RaftTerm: 1},
		Version:   version.Version,
		Leader:    pos.StoreID,
		RaftTerm:  1,
		RaftIndex: uint64(pos.Revision),
	}, nil
}
