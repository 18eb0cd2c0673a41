/* SPDX-FileCopyrightText: 2026 The onprem.llm authors */
/* SPDX-License-Identifier: Apache-2.0 */
/* Each rank gives its number; all get the sum, and the first says on how many hosts they ran. Ends with 1 if a sum is wrong. */
#include <mpi.h>
#include <stdio.h>
#include <string.h>

#define COUNT 100000
#define RANKS_MAX 64

static double given[COUNT], got[COUNT];

int main(int argc, char **argv)
{
    char name[MPI_MAX_PROCESSOR_NAME] = "", names[RANKS_MAX][MPI_MAX_PROCESSOR_NAME];
    int rank, ranks, length, hosts = 0, wrong = 0, all_wrong = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (ranks > RANKS_MAX)
        MPI_Abort(MPI_COMM_WORLD, 2);
    MPI_Get_processor_name(name, &length);

    for (int i = 0; i < COUNT; i++)
        given[i] = rank + 1 + i;
    MPI_Allreduce(given, got, COUNT, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    for (int i = 0; i < COUNT; i++)
        wrong |= got[i] != ranks * (ranks + 1) / 2.0 + (double)ranks * i;
    MPI_Allreduce(&wrong, &all_wrong, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);

    MPI_Gather(name, sizeof name, MPI_CHAR, names, sizeof name, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        for (int i = 0; i < ranks; i++) {
            int first = 1;
            for (int j = 0; j < i; j++)
                first &= strcmp(names[i], names[j]) != 0;
            hosts += first;
            if (first)
                printf("host %s\n", names[i]);
        }
        printf("ranks %d hosts %d sum %.0f %s\n", ranks, hosts, got[0], all_wrong ? "wrong" : "right");
    }
    MPI_Finalize();
    return all_wrong != 0;
}
