from fastai.vision.all import *

dls = ImageDataLoaders.from_folder("photos", valid="test", item_tfms=Resize(32, ResizeMethod.Pad, pad_mode="zeros"), bs=16)
body = nn.Sequential(ConvLayer(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
learn = Learner(dls, nn.Sequential(body, nn.Linear(8, dls.c)), metrics=accuracy)
learn.fit_one_cycle(15, 0.01)
learn.export("export.pkl")
predictions = learn.get_preds()[0].argmax(1)
for file, kind in zip(dls.valid_ds.items, predictions):
    print(file, dls.vocab[kind])
print("score", learn.validate()[1])
