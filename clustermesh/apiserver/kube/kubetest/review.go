package kubetest

import "net/http"

// Review has tokens reviewed by f, which answers with the status of a TokenReview.
func (s *Server) Review(f func(token string, audiences []string) map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.review = f
}

func (s *Server) reviewToken(w http.ResponseWriter, r *http.Request) {
	c, err := body(r)
	if err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	s.mu.Lock()
	review := s.review
	s.mu.Unlock()
	spec, _ := c["spec"].(content)
	token, _ := spec["token"].(string)
	var audiences []string
	if list, ok := spec["audiences"].([]any); ok {
		for _, a := range list {
			audiences = append(audiences, a.(string))
		}
	}
	state := content{"error": "nobody reviews tokens here"}
	if review != nil {
		state = review(token, audiences)
	}
	answer(w, http.StatusCreated, content{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": content{}, "spec": spec, "status": state})
}
