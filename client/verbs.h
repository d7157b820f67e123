// verbs: what `stagecoach VERB` can do; each is in the file of its name. argv[0] is the verb.
// Each returns the exit status: 0, 1 (failed, one sentence is on standard error), 2 (usage) or 130
// (interrupted); health has its own.
#pragma once

int verb_generate(int argc, char **argv);
int verb_status(int argc, char **argv);
int verb_health(int argc, char **argv);
int verb_trace(int argc, char **argv);
int verb_model(int argc, char **argv);
int verb_tokenize(int argc, char **argv);
int verb_simulate(int argc, char **argv);
int verb_detokenize(int argc, char **argv);
