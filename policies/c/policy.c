/* Fraud guard: somebody whose score is above `params.max` is sent to the variant `review`,
 * everybody else is left to the next rule. */
#include "tidegate.h"

TG_EXPORT(tidegate_describe) tg_packed tidegate_describe(void) {
    return TG_ANSWER("{\"attributes\":[\"user.score\"]}");
}

TG_EXPORT(evaluate) tg_packed evaluate(const char *at, tg_size len) {
    tg_text input = {at, len};
    tg_text score = tg_find(input, "attributes.user.score");
    double max = tg_number(tg_find(input, "params.max"), 3);
    /* Without a score it is no number, and no number is above the maximum. */
    if (!(tg_number(score, __builtin_nan("")) > max)) return TG_ANSWER("{\"abstain\":true}");
    return TG_ANSWER("{\"variant\":\"review\",\"reason\":\"the score is above the maximum\"}");
}
