// The route that the service replaces, for comparison: gin over database/sql. Prints "listening on HOST:PORT".
package main

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"

	"github.com/gin-gonic/gin"
	_ "github.com/jackc/pgx/v5/stdlib"
)

const (
	connections = 8
	closed      = "platform_managed"
	query       = "SELECT llm_billing_mode FROM workspaces WHERE id = $1"
)

var (
	uuid  = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	modes = map[string]bool{"platform_managed": true, "byok": true, "disabled": true}
)

type answer struct {
	WorkspaceID       string  `json:"workspace_id"`
	ResolvedMode      string  `json:"resolved_mode"`
	WorkspaceOverride *string `json:"workspace_override"`
	OrgDefault        string  `json:"org_default"`
	Source            string  `json:"source"`
}

func resolve(ctx context.Context, db *sql.DB, id, orgDefault string) (answer, error) {
	var override *string
	err := db.QueryRowContext(ctx, query, id).Scan(&override)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return answer{}, err
	}
	result := answer{id, closed, override, closed, "constant_fallback"}
	if modes[orgDefault] {
		result.ResolvedMode, result.OrgDefault, result.Source = orgDefault, orgDefault, "org_default"
	}
	if override != nil && modes[*override] {
		result.ResolvedMode, result.Source = *override, "workspace_override"
	}
	return result, nil
}

func authorized(token string) gin.HandlerFunc {
	want := []byte("Bearer " + token)
	return func(c *gin.Context) {
		if subtle.ConstantTimeCompare([]byte(c.GetHeader("Authorization")), want) != 1 {
			c.AbortWithStatusJSON(http.StatusUnauthorized, gin.H{"error": "unauthorized"})
		}
	}
}

func main() {
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	orgDefault := os.Getenv("ORG_DEFAULT")

	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	router.Use(gin.Recovery(), authorized(os.Getenv("TOKEN")))
	router.GET("/admin/workspaces/:id/llm-billing-mode", func(c *gin.Context) {
		id := strings.TrimSpace(c.Param("id"))
		if !uuid.MatchString(id) {
			c.JSON(http.StatusBadRequest, gin.H{"error": "invalid workspace id"})
			return
		}
		result, err := resolve(c.Request.Context(), db, id, orgDefault)
		if err != nil {
			c.JSON(http.StatusInternalServerError, gin.H{
				"error": "failed to resolve billing mode", "detail": err.Error(), "safe_default": closed, "workspace_id": id,
			})
			return
		}
		c.JSON(http.StatusOK, result)
	})

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	log.Fatal(http.Serve(listener, router))
}
