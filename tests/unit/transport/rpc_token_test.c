// Files of tokens: what they may hold, and that nothing of a secret is repeated.
#include "transport/rpc_token.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/rpc.h"

static void every_line_is_a_token_with_name_and_roles(void **state) {
    (void)state;
    const char *text = "# who may call\n"
                       "\n"
                       "aaaaaaaaaaaaaaaa\n"
                       "  bbbbbbbbbbbbbbbb\tgateway # in front\r\n"
                       "cc.-_~+/=ccccccc ops operator,client\n"
                       "dddddddddddddddd spare stage";
    struct rpc_tokens tokens;
    struct error error = {0};
    assert_int_equal(rpc_tokens_parse(text, "tokens", &tokens, &error), STATUS_OK);
    assert_int_equal(tokens.count, 4);
    const struct rpc_token *token = rpc_tokens_find(&tokens, "aaaaaaaaaaaaaaaa");
    assert_non_null(token);
    assert_string_equal(token->name, "line 3");
    assert_int_equal(token->roles, RPC_ROLE_CLIENT);
    token = rpc_tokens_find(&tokens, "bbbbbbbbbbbbbbbb");
    assert_non_null(token);
    assert_string_equal(token->name, "gateway");
    assert_int_equal(token->roles, RPC_ROLE_CLIENT);
    token = rpc_tokens_find(&tokens, "cc.-_~+/=ccccccc");
    assert_non_null(token);
    assert_int_equal(token->roles, RPC_ROLE_CLIENT | RPC_ROLE_OPERATOR);
    token = rpc_tokens_find(&tokens, "dddddddddddddddd");
    assert_non_null(token);
    assert_int_equal(token->roles, RPC_ROLE_STAGE);
    static const char *const strangers[] = {"", "aaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaa", "gateway",
                                            "aaaaaaaaaaaaaaaA"};
    for (size_t i = 0; i < sizeof(strangers) / sizeof(strangers[0]); i++)
        assert_null(rpc_tokens_find(&tokens, strangers[i]));
    rpc_tokens_free(&tokens);
}

static void bad_lines_are_named_without_their_secret(void **state) {
    (void)state;
    static const struct {
        const char *text, *sentence;
    } cases[] = {
        {"", "f: has no token"},
        {"# only a comment\n", "f: has no token"},
        {"secret-secret-s\n", "f, line 1: the token has 15 bytes, it must have 16 to 512"},
        {"\n\nsecret-secret!secret\n",
         "f, line 3: character 14 of the token is not a letter, a digit or one of -._~+/="},
        {"secret-secret-secret a root\n",
         "f, line 1: the role is 'root', it must be client, operator or stage"},
        {"secret-secret-secret a client,\n",
         "f, line 1: the role is '', it must be client, operator or stage"},
        {"secret-secret-secret a client b\n", "f, line 1: more than a token, a name and roles"},
        {"secret-secret-secret\nsecret-secret-secret x\n", "f, line 2: the token of a line before"},
        {"secret-secret-secret "
         "0123456789012345678901234567890123456789012345678901234567890123\n",
         "f, line 1: the name has 64 bytes, at most 63 are allowed"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rpc_tokens tokens;
        struct error error = {0};
        assert_int_equal(rpc_tokens_parse(cases[i].text, "f", &tokens, &error), STATUS_INVALID);
        assert_string_equal(error.text, cases[i].sentence);
        assert_null(strstr(error.text, "secret"));
    }
}

static void tokens_beyond_the_limit_are_refused(void **state) {
    (void)state;
    const size_t line_bytes = 22; // "token-0000000000001234"
    char *text = calloc(RPC_TOKEN_COUNT_MAX + 1, line_bytes + 2);
    assert_non_null(text);
    size_t used = 0;
    for (int i = 0; i < RPC_TOKEN_COUNT_MAX; i++)
        used += (size_t)sprintf(text + used, "token-%016d\n", i);
    struct rpc_tokens tokens;
    struct error error = {0};
    assert_int_equal(rpc_tokens_parse(text, "f", &tokens, &error), STATUS_OK);
    assert_int_equal(tokens.count, RPC_TOKEN_COUNT_MAX);
    assert_non_null(rpc_tokens_find(&tokens, "token-0000000000001023"));
    rpc_tokens_free(&tokens);
    used += (size_t)sprintf(text + used, "token-%016d\n", RPC_TOKEN_COUNT_MAX);
    assert_int_equal(rpc_tokens_parse(text, "f", &tokens, &error), STATUS_EXHAUSTED);
    assert_string_equal(error.text, "f, line 1025: more than 1024 tokens");
    free(text);
}

static void own_token_is_the_first_line(void **state) {
    (void)state;
    char token[RPC_TOKEN_BYTES_MAX + 1];
    struct error error = {0};
    assert_int_equal(rpc_token_parse_own("aaaaaaaaaaaaaaaa\nmore\n", "f", token, &error),
                     STATUS_OK);
    assert_string_equal(token, "aaaaaaaaaaaaaaaa");
    assert_int_equal(rpc_token_parse_own("  aaaaaaaaaaaaaaaa  ", "f", token, &error), STATUS_OK);
    assert_string_equal(token, "aaaaaaaaaaaaaaaa");
    assert_int_equal(rpc_token_parse_own("\naaaaaaaaaaaaaaaa", "f", token, &error), STATUS_INVALID);
    assert_int_equal(rpc_token_parse_own("aaaaaaaaaaaaaaaa\x01", "f", token, &error),
                     STATUS_INVALID);
    assert_string_equal(error.text, "f: character 17 of the token is not a letter, a digit or one "
                                    "of -._~+/=");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_line_is_a_token_with_name_and_roles),
        cmocka_unit_test(bad_lines_are_named_without_their_secret),
        cmocka_unit_test(tokens_beyond_the_limit_are_refused),
        cmocka_unit_test(own_token_is_the_first_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
