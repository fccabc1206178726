from fastai.tabular.all import *

train, test = pd.read_csv("people.csv"), pd.read_csv("people_test.csv")
rows = pd.concat([train, test], ignore_index=True)
dls = TabularDataLoaders.from_df(
    rows,
    procs=[Categorify, FillMissing, Normalize],
    cat_names=["town"],
    cont_names=["age"],
    y_names="kind",
    valid_idx=list(range(len(train), len(rows))),
    bs=16,
)
learn = tabular_learner(dls, layers=[32], metrics=accuracy)
learn.fit_one_cycle(15, 0.01)
learn.export("export.pkl")
predictions = learn.get_preds(dl=learn.dls.test_dl(test))[0].argmax(1)
for town, kind in zip(test["town"], predictions):
    print(town, dls.vocab[kind])
print("score", learn.validate()[1])
