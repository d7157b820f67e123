#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/address.h"

static void addresses_are_parsed_and_formatted_back(void **state) {
    (void)state;
    static const struct {
        const char *text, *host;
        uint16_t port;
    } cases[] = {
        {"10.0.0.7:7070", "10.0.0.7", 7070},
        {"stage-0.pipe:65535", "stage-0.pipe", 65535},
        {"localhost:0", "localhost", 0},
        {":50051", "", 50051},
        {"[::1]:1", "::1", 1},
        {"[fe80::1%eth0]:80", "fe80::1%eth0", 80},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct address address;
        assert_int_equal(address_parse(cases[i].text, &address, NULL), STATUS_OK);
        assert_string_equal(address.host, cases[i].host);
        assert_int_equal(address.port, cases[i].port);
        char text[ADDRESS_HOST_BYTES_MAX + 10];
        assert_true(address_format(address.host, address.port, text, sizeof(text)));
        assert_string_equal(text, cases[i].text);
    }
    struct address address;
    assert_int_equal(address_parse("[10.0.0.7]:00080", &address, NULL), STATUS_OK);
    assert_string_equal(address.host, "10.0.0.7");
    assert_int_equal(address.port, 80);
}

static void malformed_addresses_are_refused_by_name(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "",
        "host",
        "host:",
        "host:65536",
        "host:99999",
        "host:000001",
        "host:x",
        "host:80x",
        "host:-1",
        "host:+1",
        "host: 1",
        "host:1 ",
        "::1:80",
        "::",
        "[::1]",
        "[::1]:",
        "[::1]x:80",
        "x[::1]:80",
        "[::1:80",
        "[host:80",
        "host]:80",
        "[]:80",
        "[[::1]]:80",
        "a:b:80",
        "host:18446744073709551617",
        "host:0x50",
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        struct error error = {0};
        struct address address = {.host = "kept", .port = 7};
        if (address_parse(wrong[i], &address, &error) != STATUS_INVALID)
            fail_msg("'%s' is taken", wrong[i]);
        assert_non_null(strstr(error.text, wrong[i]));
        assert_string_equal(address.host, "kept");
        assert_int_equal(address.port, 7);
    }
}

static void host_has_a_largest_length(void **state) {
    (void)state;
    char text[ADDRESS_HOST_BYTES_MAX + 10];
    memset(text, 'h', sizeof(text));
    memcpy(text + ADDRESS_HOST_BYTES_MAX, ":80", 4);
    struct address address;
    assert_int_equal(address_parse(text, &address, NULL), STATUS_OK);
    assert_int_equal(strlen(address.host), ADDRESS_HOST_BYTES_MAX);
    memcpy(text + ADDRESS_HOST_BYTES_MAX, "h:80", 5);
    struct error error = {0};
    assert_int_equal(address_parse(text, &address, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "too long"));
}

static void format_refuses_what_does_not_fit(void **state) {
    (void)state;
    char text[16];
    assert_true(address_format("::1", 65535, text, sizeof("[::1]:65535")));
    assert_string_equal(text, "[::1]:65535");
    for (size_t capacity = 0; capacity < sizeof("[::1]:65535"); capacity++)
        assert_false(address_format("::1", 65535, text, capacity));
}

static void wildcards_are_known(void **state) {
    (void)state;
    assert_true(address_is_wildcard(""));
    assert_true(address_is_wildcard("0.0.0.0"));
    assert_true(address_is_wildcard("::"));
    assert_false(address_is_wildcard("127.0.0.1"));
    assert_false(address_is_wildcard("::1"));
    assert_false(address_is_wildcard("0.0.0.0.example"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_are_parsed_and_formatted_back),
        cmocka_unit_test(malformed_addresses_are_refused_by_name),
        cmocka_unit_test(host_has_a_largest_length),
        cmocka_unit_test(format_refuses_what_does_not_fit),
        cmocka_unit_test(wildcards_are_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
