/* The ABI of Tidegate's policies, version 1, and the little JSON that a policy needs. No libc.
 * Your policy is `policy.c`; nothing in here has to be changed. */
#ifndef TIDEGATE_H
#define TIDEGATE_H

typedef unsigned int tg_size;
typedef unsigned long long tg_packed;

#define TG_EXPORT(name) __attribute__((export_name(#name)))

__attribute__((import_module("tidegate.v1"), import_name("log")))
void tg_log(const char *at, tg_size len);

/* A piece of the input; `at` is 0 where there is none. */
typedef struct { const char *at; tg_size len; } tg_text;

static tg_packed tg_pack(const char *at, tg_size len) {
    return ((tg_packed)(tg_size)at << 32) | len;
}

/* A text constant as an answer. */
#define TG_ANSWER(text) tg_pack("" text, sizeof(text) - 1)

static const char *tg_spaces(const char *at, const char *end) {
    while (at < end && (unsigned char)*at <= ' ') at++;
    return at;
}

/* Behind the value that begins at `at`. */
static const char *tg_skipped(const char *at, const char *end) {
    unsigned depth = 0;
    while (at < end) {
        char c = *at++;
        if (c == '"') {
            while (at < end && *at != '"') at += *at == '\\' ? 2 : 1;
            at++;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            depth--;
        } else {
            while (at < end && *at != ',' && *at != '}' && *at != ']' && *at > ' ') at++;
        }
        if (depth == 0) break;
        at = tg_spaces(at, end);
        while (at < end && (*at == ',' || *at == ':')) at = tg_spaces(at + 1, end);
    }
    return at < end ? at : end;
}

/* The value at a dotted path, as JSON: `attributes.user.score`, `params.max`, `targetingKey`. */
static tg_text tg_find(tg_text json, const char *path) {
    const tg_text none = {0, 0};
    const char *at = json.at, *end = json.at + json.len;
    for (;;) {
        at = tg_spaces(at, end);
        if (at >= end || *at != '{') return none;
        at = tg_spaces(at + 1, end);
        int found = 0;
        while (at < end && *at == '"') {
            const char *name = at + 1, *step = path, *behind = tg_skipped(at, end);
            tg_size len = behind - name - 1, same = 0;
            while (same < len && step[same] == name[same]) same++;
            at = tg_spaces(tg_spaces(behind, end) + 1, end);
            if (same == len && (step[same] == '.' || step[same] == 0)) {
                path = step + same;
                found = 1;
                break;
            }
            at = tg_spaces(tg_skipped(at, end), end);
            if (at < end && *at == ',') at = tg_spaces(at + 1, end);
        }
        if (!found) return none;
        if (*path == 0) break;
        path++;
    }
    tg_text value = {at, tg_skipped(at, end) - at};
    return value;
}

/* A JSON number without an exponent, or `otherwise`. */
static double tg_number(tg_text json, double otherwise) {
    const char *at = json.at, *end = json.at + json.len;
    int minus = at < end && *at == '-';
    if (minus) at++;
    if (at >= end || *at < '0' || *at > '9') return otherwise;
    double number = 0, unit = 1;
    while (at < end && *at >= '0' && *at <= '9') number = number * 10 + (*at++ - '0');
    if (at < end && *at == '.')
        for (at++; at < end && *at >= '0' && *at <= '9'; at++) number += (*at - '0') * (unit /= 10);
    if (at < end) return otherwise;
    return minus ? -number : number;
}

/* What the host calls before `evaluate`. The input is all there is to allocate, once a call. */
TG_EXPORT(tidegate_abi) int tidegate_abi(void) { return 1; }

static char tg_input[16 * 1024];
TG_EXPORT(tidegate_alloc) char *tidegate_alloc(tg_size len) {
    return len <= sizeof tg_input ? tg_input : 0;
}

#endif
