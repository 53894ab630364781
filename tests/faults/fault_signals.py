"""The signals of the matrix: who gets which signal in which phase, and what is right.

In a column, `/` stands between several right answers, and `-` says that nothing is asked for.

run      recipe (two torchrun ranks of a tiny model), torchrun (an own torchrun, ranks without torch), light (an own launcher)
who      recorder, agent (torchrun's), launcher (an own one), rank 0, rank 1
signal   A name; several are sent one after the other. `adopt`: a new recorder takes the run over; `stop`: `lorawatch stop`;
         `alone`: the recorder is killed first, so that no recorder sees what follows.
         HUP, what a lost terminal sends, ends nothing.
phase    starting, loading, training, evaluating, saving, ending: `scene.Scene.phase`
verdict  State, and the failure behind it
named    What the run's message says, a regular expression
rc       Exit status of the command that recorded the run at its end
rows     `all`: each step that a rank made is in the history. `written`: each whose line a rank came to write; a rank that is
         killed takes along what it had not written, a tenth of a second's steps.
"""

TABLE = """
run      | who      | signal     | phase      | verdict         | named                              | rc    | rows

recipe   | rank 0   | KILL       | loading    | failed signal   | rank 0 .*SIGKILL                   | 1     | written
recipe   | rank 0   | KILL       | training   | failed signal   | rank 0 .*SIGKILL                   | 1     | written
recipe   | rank 0   | KILL       | evaluating | failed signal   | rank 0 .*SIGKILL                   | 1     | written
recipe   | rank 0   | KILL       | saving     | failed signal   | rank 0 .*SIGKILL                   | 1     | written
recipe   | rank 1   | KILL       | loading    | failed signal   | rank 1 .*SIGKILL                   | 1     | written
recipe   | rank 1   | KILL       | training   | failed signal   | rank 1 .*SIGKILL                   | 1     | written
recipe   | rank 1   | KILL       | evaluating | failed signal   | rank 1 .*SIGKILL                   | 1     | written
recipe   | rank 1   | KILL       | saving     | failed signal   | rank 1 .*SIGKILL                   | 1     | written
recipe   | rank 1   | KILL       | ending     | failed signal/completed | -                          | 0/1   | written
recipe   | rank 0   | TERM       | loading    | failed signal   | rank 0 .*SIGTERM                   | 1     | written
recipe   | rank 0   | TERM       | training   | failed signal   | rank 0 .*SIGTERM                   | 1     | written
recipe   | rank 0   | TERM       | evaluating | failed signal   | rank 0 .*SIGTERM                   | 1     | written
recipe   | rank 0   | TERM       | saving     | failed signal   | rank 0 .*SIGTERM                   | 1     | written
recipe   | rank 1   | TERM       | loading    | failed signal   | rank 1 .*SIGTERM                   | 1     | written
recipe   | rank 1   | TERM       | training   | failed signal   | rank 1 .*SIGTERM                   | 1     | written
recipe   | rank 1   | TERM       | evaluating | failed signal   | rank 1 .*SIGTERM                   | 1     | written
recipe   | rank 1   | TERM       | saving     | failed signal   | rank 1 .*SIGTERM                   | 1     | written
recipe   | rank 1   | TERM       | ending     | failed signal/completed | -                          | 0/1   | written
recipe   | rank 0   | INT        | training   | failed signal   | rank 0 .*SIGINT                    | 1     | written
recipe   | rank 1   | INT        | training   | failed signal   | rank 1 .*SIGINT                    | 1     | written
recipe   | rank 1   | HUP stop   | training   | stopped         | together at step \\d+              | 0     | all
recipe   | rank 1   | SEGV       | training   | failed signal   | rank 1 .*SIGSEGV                   | 1     | written
recipe   | rank 1   | ABRT       | evaluating | failed signal   | rank 1 .*SIGABRT                   | 1     | written
recipe   | rank 0   | BUS        | saving     | failed signal   | rank 0 .*SIGBUS                    | 1     | written
recipe   | agent    | KILL       | starting   | failed signal   | agent .*SIGKILL                    | 1     | written
recipe   | agent    | KILL       | loading    | failed signal   | agent .*SIGKILL                    | 1     | written
recipe   | agent    | KILL       | training   | failed signal   | agent .*SIGKILL                    | 1     | written
recipe   | agent    | KILL       | evaluating | failed signal   | agent .*SIGKILL                    | 1     | written
recipe   | agent    | KILL       | saving     | failed signal   | agent .*SIGKILL                    | 1     | written
recipe   | agent    | KILL       | ending     | failed signal/completed | -                          | 0/1   | written
recipe   | agent    | TERM       | starting   | failed signal   | agent .*SIGTERM                    | 1     | written
recipe   | agent    | TERM       | loading    | failed signal   | agent .*SIGTERM                    | 1     | written
recipe   | agent    | TERM       | training   | failed signal   | agent .*SIGTERM                    | 1     | written
recipe   | agent    | TERM       | evaluating | failed signal   | agent .*SIGTERM                    | 1     | written
recipe   | agent    | TERM       | saving     | failed signal   | agent .*SIGTERM                    | 1     | written
recipe   | agent    | INT        | training   | failed signal   | agent .*SIGINT                     | 1     | written
recipe   | agent    | HUP stop   | training   | stopped         | together at step \\d+              | 0     | all
recipe   | agent    | SEGV       | training   | failed signal   | agent .*SIGSEGV                    | 1     | written
recipe   | recorder | INT        | starting   | stopped         | before the first step              | 130   | all
recipe   | recorder | INT        | loading    | stopped         | before the first step              | 130   | all
recipe   | recorder | INT        | training   | stopped         | together at step \\d+              | 130   | all
recipe   | recorder | INT        | evaluating | stopped         | together at step \\d+              | 130   | all
recipe   | recorder | INT        | saving     | stopped         | together at step \\d+              | 130   | all
recipe   | recorder | TERM       | loading    | stopped         | before the first step              | 143   | all
recipe   | recorder | TERM       | training   | stopped         | together at step \\d+              | 143   | all
recipe   | recorder | TERM       | evaluating | stopped         | together at step \\d+              | 143   | all
recipe   | recorder | HUP stop   | training   | stopped         | together at step \\d+              | 0     | all
recipe   | recorder | INT INT    | training   | stopped         | at once|together                   | 130   | written
recipe   | recorder | stop       | evaluating | stopped         | together at step \\d+              | 0     | all
recipe   | recorder | KILL adopt stop | loading    | stopped    | before the first step              | 0     | all
recipe   | recorder | KILL adopt stop | training   | stopped    | together at step \\d+              | 0     | all
recipe   | recorder | KILL adopt stop | evaluating | stopped    | together at step \\d+              | 0     | all
recipe   | recorder | KILL adopt stop | saving     | stopped    | together at step \\d+              | 0     | all
recipe   | recorder | KILL adopt INT  | training   | stopped    | together at step \\d+              | 130   | all
recipe   | recorder | KILL adopt KILL adopt stop | training | stopped | together at step \\d+         | 0     | all
recipe   | rank 1   | alone KILL adopt | training   | failed signal | rank 1 .*SIGKILL       | 1     | written
recipe   | agent    | alone KILL adopt | training   | failed signal/lost | -                 | 1     | written

torchrun | rank 0   | KILL       | training   | failed signal   | rank 0 .*SIGKILL                   | 1     | written
torchrun | rank 1   | KILL       | training   | failed signal   | rank 1 .*SIGKILL                   | 1     | written
torchrun | rank 1   | TERM       | training   | failed signal   | rank 1 .*SIGTERM                   | 1     | written
torchrun | rank 1   | SEGV       | training   | failed signal   | rank 1 .*SIGSEGV                   | 1     | written
torchrun | agent    | KILL       | training   | failed signal   | the command .*SIGKILL              | 1     | written
torchrun | agent    | TERM       | training   | failed signal   | torchrun .*SIGTERM                 | 1     | written
torchrun | agent    | SEGV       | training   | failed signal   | the command .*SIGSEGV              | 1     | written
torchrun | recorder | INT        | training   | stopped         | -                                  | 130   | all
torchrun | recorder | TERM       | loading    | stopped         | -                                  | 143   | written
torchrun | recorder | KILL adopt stop | training | stopped      | -                                  | 0     | all

light    | launcher | KILL       | starting   | failed signal   | the command .*SIGKILL              | 1     | written
light    | launcher | KILL       | training   | failed signal   | the command .*SIGKILL              | 1     | written
light    | launcher | TERM       | training   | failed signal   | the command .*SIGTERM              | 1     | written
light    | launcher | SEGV       | training   | failed signal   | the command .*SIGSEGV              | 1     | written
light    | launcher | ABRT       | training   | failed signal   | the command .*SIGABRT              | 1     | written
light    | launcher | HUP stop   | training   | stopped         | -                                  | 0     | all
light    | launcher | QUIT       | training   | failed signal   | the command .*SIGQUIT              | 1     | written
light    | launcher | USR1       | training   | failed signal   | the command .*SIGUSR1              | 1     | written
light    | launcher | RTMIN      | training   | failed signal   | the command .*signal 34            | 1     | written
light    | launcher | KILL       | ending     | failed signal/completed | -                          | 0/1   | written
light    | rank 0   | KILL       | training   | failed nonzero_exit | exited with status 1           | 1     | written
light    | rank 1   | TERM       | training   | failed nonzero_exit | exited with status 1           | 1     | written
light    | rank 1   | STOP CONT KILL | training | failed nonzero_exit | exited with status 1         | 1     | written
light    | recorder | INT        | starting   | stopped         | -                                  | 130   | written
light    | recorder | INT        | training   | stopped         | -                                  | 130   | all
light    | recorder | TERM       | training   | stopped         | -                                  | 143   | all
light    | recorder | HUP stop   | training   | stopped         | -                                  | 0     | all
light    | recorder | INT INT    | training   | stopped         | -                                  | 130   | written
light    | recorder | stop       | training   | stopped         | -                                  | 0     | all
light    | recorder | STOP CONT stop | training | stopped       | -                                  | 0     | all
light    | recorder | KILL adopt stop | starting | stopped      | -                                  | 0     | written
light    | recorder | KILL adopt stop | training | stopped      | -                                  | 0     | all
light    | recorder | KILL adopt INT | training | stopped       | -                                  | 130   | all
light    | recorder | KILL adopt KILL adopt TERM | training | stopped | -                            | 143   | all
light    | recorder | KILL adopt | ending     | completed/lost  | -                                  | 0/1   | all
light    | rank 0   | alone KILL adopt | training | failed/lost | -                          | 1     | written
light    | launcher | alone KILL adopt | training | failed/lost | -                          | 1     | written
"""
