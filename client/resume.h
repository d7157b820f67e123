// resume: the request that goes on with a Generate call that broke.
#pragma once

#include "client/generation.h"

// The message and what it points to.
struct resume {
    Stagecoach__V1__GenerateRequest message;
    Stagecoach__V1__Sampling sampling;
    Stagecoach__V1__ResumedAnswer entries[REQUEST_ANSWER_COUNT_MAX];
    Stagecoach__V1__ResumedAnswer *pointers[REQUEST_ANSWER_COUNT_MAX];
};

// `request` itself when nothing came of it, so that it can be made anew; else `request` with what
// came, in `resume`. The result points into all three.
const Stagecoach__V1__GenerateRequest *
resume_request(struct resume *resume, const Stagecoach__V1__GenerateRequest *request,
               const struct generation *generation);
