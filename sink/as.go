package sink

// As finds an optional interface of a sink: on the sink itself or on one that it wraps and gives by
// Unwrap() Sink. It gives the zero value (nil) if there is none.
func As[T any](s Sink) T {
	for s != nil {
		if t, ok := s.(T); ok {
			return t
		}
		u, ok := s.(interface{ Unwrap() Sink })
		if !ok {
			break
		}
		s = u.Unwrap()
	}
	var none T
	return none
}
